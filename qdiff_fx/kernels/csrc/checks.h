// What the operators check before they hand plain numbers and pointers to kernels.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <cstdint>

#include "attention.h"

namespace qdiff {

inline Type type_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return Type::f32;
    case at::kHalf: return Type::f16;
    case at::kBFloat16: return Type::bf16;
    case at::kByte: return Type::u8;
    case at::kChar: return Type::s8;
    default: TORCH_CHECK(false, "qdiff: ", dtype, " is not float32, float16, bfloat16, uint8 or int8");
  }
}

inline bool is_codes(at::ScalarType dtype) { return dtype == at::kByte || dtype == at::kChar; }

inline Quantizer checked_quantizer(double scale, int64_t zero_point, int64_t low, int64_t high, at::ScalarType dtype,
                                   const char* op) {
  if (!is_codes(dtype)) return {1.0f, 0, 0, 0};
  TORCH_CHECK(scale > 0 && std::isfinite(scale), op, ": the scale must be a positive finite number, not ", scale);
  const int64_t least = dtype == at::kByte ? 0 : -128;
  TORCH_CHECK(least <= low && low <= high && high <= least + 255, op, ": codes from ", low, " to ", high,
              " do not fit ", dtype);
  TORCH_CHECK(low <= zero_point && zero_point <= high, op, ": zero point ", zero_point, " is not one of the codes ",
              low, " to ", high);
  return {float(scale), int32_t(zero_point), int32_t(low), int32_t(high)};
}

}  // namespace qdiff
