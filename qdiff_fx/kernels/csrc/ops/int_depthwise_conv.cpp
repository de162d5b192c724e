// A convolution of every channel by itself.

#include "ops/checks.h"
#include "ops/layers.h"
#include "ops/operators.h"

namespace qdiff {

Tensor int_depthwise_conv(const Tensor& codes, double scale, int64_t zero_point, const Tensor& weight,
                          const Tensor& weight_scale, const Integers& stride, const Integers& padding, const Integers& dilation,
                          const OptionalTensor& bias, const OptionalTensor& residual, int64_t activation, Dtype out_dtype,
                          double out_scale, int64_t out_zero_point, int64_t out_low, int64_t out_high) {
  constexpr const char* op = "int_depthwise_conv";
  check_plain(codes, op), check_plain(weight, op);
  QDIFF_CHECK(codes.dim() == 4, op, ": codes must be uint8 (N, C, H, W), not ", dtype_of(codes), " ", sizes_of(codes));
  QDIFF_CHECK(weight.dim() == 3, op, ": the weight must be int8 (h, w, C), not ", dtype_of(weight), " ", sizes_of(weight));
  const auto act = checked_activation(
      activation, {Activation::none, Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}, op);
  const auto quantizer = checked_quantizer(out_scale, out_zero_point, out_low, out_high, out_dtype, op);
  const Integers kernel = {weight.size(0), weight.size(1)}, enlarge = {1, 1};
  const Window window = checked_window(kernel, stride, padding, dilation, enlarge, op);
  const OptionalTensor shift;
  return run_layer({{codes}, {scale}, {zero_point}, {weight}, {weight_scale}, {}, codes.size(1), window, true, bias, shift,
                    residual, act, out_dtype, quantizer, op});
}

}  // namespace qdiff
