// Memory of results. Allocated anew, large tensors cost a page fault per 4 KiB at every step.
#pragma once

#include <ATen/core/Tensor.h>

namespace qdiff {

// An uninitialised CPU tensor. Its memory goes back to the pool with the last reference to it.
at::Tensor pooled(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype);
at::Tensor pooled(at::IntArrayRef sizes, at::ScalarType dtype);  // contiguous

}  // namespace qdiff
