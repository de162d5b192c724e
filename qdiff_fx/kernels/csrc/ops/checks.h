// What every operator checks of its tensors on entry: the twin of checks.py. Numbers are checked by core/checks.h.
#pragma once

#include "core/checks.h"
#include "ops/tensor.h"

namespace qdiff {

inline bool is_floats(Dtype dtype) { return dtype == Dtype::Float || dtype == Dtype::Half || dtype == Dtype::BFloat16; }
inline bool is_codes(Dtype dtype) { return dtype == Dtype::Byte || dtype == Dtype::Char; }

// Of a dtype that was checked.
Type type_of(Dtype dtype);

// A dense tensor on the CPU, of no absurd size.
void check_plain(const Tensor& x, const char* op);
void check_plain(const Tensors& tensors, const char* op);
void check_plain(const OptionalTensor& x, const char* op);

void check_float(const Tensor& x, const char* what, const char* op);
Quantizer checked_quantizer(double scale, int64_t zero_point, int64_t low, int64_t high, Dtype dtype, const char* op);

// So many float32 numbers side by side, or null for none.
const float* checked_floats(const OptionalTensor& x, int64_t count, const char* what, const char* op);

}  // namespace qdiff
