// How tensors lie in memory, as the kernels want them.
#pragma once

#include "ops/tensor.h"

namespace qdiff {

// Uninitialised (N, C, ...) whose channels lie side by side.
Tensor channels_last(const Sizes& sizes, Dtype dtype);

// x (N, C, ...), copied unless its pixels follow each other at one distance and their channels lie side by side.
Tensor with_even_pixels(const Tensor& x);
int64_t pixel_stride(const Tensor& x);  // of such a one
int64_t pixels_of(const Tensor& x);

// x (..., C), C at least 1, as (rows, C) with unit stride in C and rows at one distance.
Tensor as_rows(const Tensor& x);

}  // namespace qdiff
