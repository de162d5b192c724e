// The operators on CPU: checks, memory layout, threads; the arithmetic is in Kernels. One file for each.
#pragma once

#include <tuple>

#include "core/kernels.h"
#include "ops/tensor.h"

namespace qdiff {

// Those of the instruction set this process uses; there are some before the first operator is called.
const Kernels& kernels();

std::tuple<Tensor, Tensor> packed_weight(const Tensor& codes, int64_t bits);

// Codes and scales.
std::tuple<Tensor, Tensor> nearest_codes(const Tensor& weight, int64_t bits, int64_t candidates, double shrink, double power);

// V, the moments of its gradient, the weight; codes below, scales, the gradient by the weight; then numbers.
void adaround_step(const Tensor& up, const Tensor& first, const Tensor& second, const Tensor& weight, const Tensor& base,
                   const Tensor& scales, const Tensor& gradient, int64_t bits, int64_t step, double rate, double pull,
                   double beta);

Tensor range_errors(const Tensor& edges, const Tensor& density, const Integers& bins, const Tensor& scales,
                    const Tensor& firsts, const Tensor& lasts, double power);
Tensor histogram(const Tensor& rows, int64_t exponent, int64_t bins, int64_t step);

Tensor int_conv(const Tensors& codes, const Floats& scales, const Integers& zero_points, const Tensors& weights,
                const Tensors& weight_scales, const Tensors& weight_sums, int64_t out_channels, const Integers& kernel,
                const Integers& stride, const Integers& padding, const Integers& dilation, const Integers& enlarge,
                const OptionalTensor& bias, const OptionalTensor& shift, const OptionalTensor& residual, int64_t activation,
                Dtype out_dtype, double out_scale, int64_t out_zero_point, int64_t out_low, int64_t out_high);

Tensor int_depthwise_conv(const Tensor& codes, double scale, int64_t zero_point, const Tensor& weight,
                          const Tensor& weight_scale, const Integers& stride, const Integers& padding, const Integers& dilation,
                          const OptionalTensor& bias, const OptionalTensor& residual, int64_t activation, Dtype out_dtype,
                          double out_scale, int64_t out_zero_point, int64_t out_low, int64_t out_high);

void int_gram(const Tensor& total, const Tensor& rows);

std::tuple<Tensor, Tensor, Tensor> round_with_feedback(const Tensor& steps, const Tensor& pull, const Tensor& factor, int64_t low,
                                                       int64_t high);

Tensor int_linear(const Tensor& codes, double scale, int64_t zero_point, const Tensors& weights, const Tensors& weight_scales,
                  const Tensors& weight_sums, int64_t out_features, const OptionalTensor& bias, const OptionalTensor& residual,
                  int64_t activation, Dtype out_dtype, double out_scale, int64_t out_zero_point, int64_t out_low,
                  int64_t out_high);

Tensor group_norm_act(const Tensors& parts, int64_t groups, const OptionalTensor& weight, const OptionalTensor& bias,
                      double epsilon, int64_t activation, Dtype out_dtype, double scale, int64_t zero_point, int64_t low,
                      int64_t high);

Tensor layer_norm_act(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double epsilon, Dtype out_dtype,
                      double scale, int64_t zero_point, int64_t low, int64_t high);

Tensor act_quantize(const Tensor& x, int64_t activation, Dtype out_dtype, double scale, int64_t zero_point, int64_t low,
                    int64_t high);

Tensor act_quantize_rest(const Tensor& x, int64_t activation, double scale, int64_t zero_point, int64_t low, int64_t high,
                         double rest_scale, int64_t rest_zero_point);

// Of int_attention_vnni: its numbers as tensors of one element, and as numbers.
Tensor int_attention(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask, const Tensor& q_scale,
                     const Tensor& q_zero_point, const Tensor& k_scale, const Tensor& v_scale, double softmax_scale,
                     int64_t prob_bits, Dtype out_dtype);
Tensor int_attention_numbers(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask, double q_scale,
                             int64_t q_zero_point, double k_scale, double v_scale, double softmax_scale, int64_t prob_bits,
                             Dtype out_dtype, double out_scale, int64_t out_zero_point, int64_t out_low, int64_t out_high);

}  // namespace qdiff
