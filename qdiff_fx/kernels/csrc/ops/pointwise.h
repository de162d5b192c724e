// What the two operators that quantize activations have in common.
#pragma once

#include "ops/checks.h"
#include "ops/operators.h"

namespace qdiff {

Activation checked_pointwise(const Tensor& x, int64_t activation, const char* op);

// p: activation and quantizers.
Tensor run_pointwise(const Tensor& x, Pointwise p, Dtype out_dtype);

}  // namespace qdiff
