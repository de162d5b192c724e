// A convolution of one or more quantized images.

#include "ops/checks.h"
#include "ops/layers.h"
#include "ops/operators.h"

namespace qdiff {

Tensor int_conv(const Tensors& codes, const Floats& scales, const Integers& zero_points, const Tensors& weights,
                const Tensors& weight_scales, const Tensors& weight_sums, int64_t out_channels, const Integers& kernel,
                const Integers& stride, const Integers& padding, const Integers& dilation, const Integers& enlarge,
                const OptionalTensor& bias, const OptionalTensor& shift, const OptionalTensor& residual, int64_t activation,
                Dtype out_dtype, double out_scale, int64_t out_zero_point, int64_t out_low, int64_t out_high) {
  constexpr const char* op = "int_conv";
  const size_t count = codes.size();
  QDIFF_CHECK(count > 0 && scales.size() == count && zero_points.size() == count && weights.size() == count &&
                  weight_scales.size() == count && weight_sums.size() == count,
              op, ": every source needs codes, scale, zero point, weight, weight scales and weight sums");
  const auto act = checked_activation(
      activation, {Activation::none, Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}, op);
  const auto quantizer = checked_quantizer(out_scale, out_zero_point, out_low, out_high, out_dtype, op);
  const Window window = checked_window(kernel, stride, padding, dilation, enlarge, op);
  return run_layer({codes, scales, zero_points, weights, weight_scales, weight_sums, out_channels, window, false, bias, shift, residual,
                    act, out_dtype, quantizer, op});
}

}  // namespace qdiff
