// What a convolution and a linear layer have in common.
#pragma once

#include "core/convolution.h"
#include "ops/tensor.h"

namespace qdiff {

struct ConvCall {
  const Tensors& codes;
  const Floats& scales;
  const Integers& zero_points;
  const Tensors &weights, &weight_scales, &weight_sums;
  int64_t out_channels;
  Window window;
  bool depthwise;  // one source, whose weight is int8 (h, w, C) and has no sums
  const OptionalTensor &bias, &shift, &residual;
  Activation activation;
  Dtype out_dtype;
  Quantizer quantizer;
  const char* op;
};

// Checks everything but the window and the quantizer, which were checked when they were made.
Tensor run_layer(const ConvCall& call);

}  // namespace qdiff
