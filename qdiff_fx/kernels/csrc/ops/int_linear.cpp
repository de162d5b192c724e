// A linear layer, or two whose results meet in GEGLU: a convolution of 1x1 over rows.

#include "ops/checks.h"
#include "ops/layers.h"
#include "ops/layout.h"
#include "ops/operators.h"

namespace qdiff {
namespace {

// Rows (..., C) as an image (rows, C, 1, 1).
Tensor as_image(const Tensor& x) {
  const Tensor rows = as_rows(x);
  return viewed(rows, {rows.size(0), rows.size(1), 1, 1}, {rows.stride(0), rows.stride(1), 1, 1});
}

}  // namespace

Tensor int_linear(const Tensor& codes, double scale, int64_t zero_point, const Tensors& weights, const Tensors& weight_scales,
                  const Tensors& weight_sums, int64_t out_features, const OptionalTensor& bias, const OptionalTensor& residual,
                  int64_t activation, Dtype out_dtype, double out_scale, int64_t out_zero_point, int64_t out_low,
                  int64_t out_high) {
  constexpr const char* op = "int_linear";
  check_plain(codes, op);
  QDIFF_CHECK(dtype_of(codes) == Dtype::Byte && codes.dim() >= 1 && sizes_of(codes).back() > 0, op,
              ": codes must be uint8 (..., I), not ", dtype_of(codes), " ", sizes_of(codes));
  check_within(out_features, 1, kMostElements, "out_features", op);
  const auto act = checked_activation(
      activation, {Activation::none, Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::geglu, Activation::relu}, op);
  const auto quantizer = checked_quantizer(out_scale, out_zero_point, out_low, out_high, out_dtype, op);
  const size_t count = act == Activation::geglu ? 2 : 1;
  QDIFF_CHECK(weights.size() == count && weight_scales.size() == count && weight_sums.size() == count, op,
              ": takes one weight with its scales and sums, and of geglu two, not ", weights.size());
  std::vector<int64_t> sizes = sizes_of(codes).copy();
  sizes.back() = out_features;
  checked_elements(sizes, op);
  OptionalTensor added;
  if (residual.has_value()) {
    check_plain(residual, op);
    QDIFF_CHECK(sizes_of(*residual) == Sizes(sizes), op, ": the residual ", sizes_of(*residual), " is not like the result ",
                Sizes(sizes));
    added = as_image(*residual);
  }
  const Window window{{1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}, {1, 1}};
  const Tensors images(count, as_image(codes));
  const Floats scales(count, scale);
  const Integers zero_points(count, zero_point);
  const OptionalTensor shift;
  const Tensor out = run_layer({images, scales, zero_points, weights, weight_scales, weight_sums, out_features, window, false,
                                bias, shift, added, act, out_dtype, quantizer, op});
  return viewed(out, sizes, contiguous_strides(sizes));
}

}  // namespace qdiff
