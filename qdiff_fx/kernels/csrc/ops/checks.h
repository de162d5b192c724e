// What every operator checks on entry, before it computes a size or allocates anything: the twin of checks.py.
//
// Operators get their arguments from graphs, and graphs from files. So nothing here trusts a size, a dtype or a length to be
// what a pass would have written. The limits are far above what any network needs, and low enough that no product of sizes
// exceeds 64 bits.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>

#include "core/attention.h"

namespace qdiff {

constexpr int64_t kMostElements = int64_t{1} << 34;  // of one tensor
constexpr int64_t kMostExtent = int64_t{1} << 24;    // rows or columns of a padded, enlarged image; also strides, ...
constexpr int64_t kMostEnlarge = 256;                // of an image, along one side
constexpr int64_t kMostWeights = INT32_MAX / 255;    // sum of a channel's weights, see accumulator.py

inline bool is_floats(at::ScalarType dtype) { return dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16; }
inline bool is_codes(at::ScalarType dtype) { return dtype == at::kByte || dtype == at::kChar; }

// Of a dtype that was checked.
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

// A dense tensor on the CPU, of no absurd size.
inline void check_plain(const at::Tensor& x, const char* op) {
  TORCH_CHECK(x.defined(), op, ": a tensor is missing");
  TORCH_CHECK(x.device().is_cpu(), op, ": its tensors have to be on one device, not on cpu and ", x.device());
  TORCH_CHECK(!x.is_nested() && x.layout() == at::kStrided && !x.is_quantized() && !x.is_complex(), op,
              ": takes dense tensors of real numbers, not those of ", x.scalar_type());
  TORCH_CHECK(x.numel() <= kMostElements, op, ": a tensor ", x.sizes(), " of more than ", kMostElements, " elements");
  for (const int64_t size : x.sizes()) {  // of none there may still be any number of columns
    TORCH_CHECK(size <= kMostElements, op, ": a tensor ", x.sizes(), " of more than ", kMostElements, " elements");
  }
}

inline void check_plain(at::TensorList tensors, const char* op) {
  for (const at::Tensor& x : tensors) check_plain(x, op);
}

inline void check_plain(const std::optional<at::Tensor>& x, const char* op) {
  if (x.has_value()) check_plain(*x, op);
}

// The product of sizes, none of which is negative.
inline int64_t checked_elements(at::IntArrayRef sizes, const char* op) {
  int64_t count = 1;
  for (const int64_t size : sizes) {
    TORCH_CHECK(size >= 0, op, ": there is no size ", size);
    if (size == 0) return 0;
  }
  for (const int64_t size : sizes) {
    TORCH_CHECK(size <= kMostElements / count, op, ": a result ", sizes, " of more than ", kMostElements, " elements");
    count *= size;
  }
  return count;
}

inline void check_within(int64_t number, int64_t low, int64_t high, const char* what, const char* op) {
  TORCH_CHECK(low <= number && number <= high, op, ": ", what, " must be ", low, "..", high, ", not ", number);
}

// Positive and finite in float32 too, and so is its inverse.
inline void check_positive(double number, const char* what, const char* op) {
  TORCH_CHECK(FLT_MIN <= number && number <= FLT_MAX, op, ": ", what, " must be a positive finite number of float32, not ",
              number);
}

// One that float32 rounds to nothing would be so in one kernel and not in another.
inline void check_epsilon(double number, const char* op) {
  TORCH_CHECK(number == 0 || (FLT_MIN <= number && number <= FLT_MAX), op,
              ": epsilon must be 0 or a positive finite number of float32, not ", number);
}

inline void check_float(const at::Tensor& x, const char* what, const char* op) {
  TORCH_CHECK(is_floats(x.scalar_type()), op, ": ", what, " must be float32, float16 or bfloat16, not ", x.scalar_type());
}

inline Activation checked_activation(int64_t number, std::initializer_list<Activation> known, const char* op) {
  for (const Activation each : known) {
    if (number == static_cast<int64_t>(each)) return each;
  }
  TORCH_CHECK(false, op, ": there is no activation ", number, " here");
}

inline Quantizer checked_quantizer(double scale, int64_t zero_point, int64_t low, int64_t high, at::ScalarType dtype,
                                   const char* op) {
  if (is_floats(dtype)) return {1.0f, 0, 0, 0};
  TORCH_CHECK(is_codes(dtype), op, ": out_dtype must be float32, float16, bfloat16, uint8 or int8, not ", dtype);
  check_positive(scale, "the scale", op);
  const int64_t least = dtype == at::kByte ? 0 : -128;
  TORCH_CHECK(least <= low && low <= high && high <= least + 255, op, ": codes from ", low, " to ", high,
              " do not fit ", dtype);
  TORCH_CHECK(low <= zero_point && zero_point <= high, op, ": zero point ", zero_point, " is not one of the codes ",
              low, " to ", high);
  return {float(scale), int32_t(zero_point), int32_t(low), int32_t(high)};
}

// So many float32 numbers side by side, or null for none.
inline const float* checked_floats(const std::optional<at::Tensor>& x, int64_t count, const char* what, const char* op) {
  if (!x.has_value()) return nullptr;
  TORCH_CHECK(x->scalar_type() == at::kFloat && x->dim() == 1 && x->size(0) == count && x->is_contiguous(), op, ": ", what,
              " must hold ", count, " contiguous float32 numbers, not ", x->scalar_type(), " ", x->sizes());
  return x->const_data_ptr<float>();
}

}  // namespace qdiff
