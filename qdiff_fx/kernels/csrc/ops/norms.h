// What the norms have in common.
#pragma once

#include "ops/checks.h"
#include "ops/operators.h"

namespace qdiff {

Norm norm_of(Dtype type, const OptionalTensor& weight, const OptionalTensor& bias, int64_t channels, double epsilon,
             Activation activation, Dtype out_dtype, const Quantizer& quantizer, const char* op);

}  // namespace qdiff
