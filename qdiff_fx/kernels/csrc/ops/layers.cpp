#include "ops/layers.h"

#include <algorithm>
#include <cfloat>

#include "ops/checks.h"
#include "ops/layout.h"
#include "ops/operators.h"

namespace qdiff {
namespace {

Tensor with_readable_quads(const Tensor& codes) {
  // (N, C, H, W): the last quad of a pixel is read whole, and so must exist.
  const Sizes sizes = sizes_of(codes), strides = strides_of(codes);
  const int64_t pixel_bytes = ceil_div(sizes[1], 4) * 4;
  const bool side_by_side = sizes[1] == 1 || strides[1] == 1;
  bool readable = side_by_side && sizes[1] == pixel_bytes;
  if (side_by_side && !readable) {
    int64_t last = 0, stored = 0;
    for (size_t dim = 0; dim < 4; ++dim) last += dim == 1 ? 0 : (sizes[dim] - 1) * strides[dim];
    check_call(aoti_torch_get_storage_size(codes.get(), &stored), "storage");
    readable = last + pixel_bytes <= stored - codes.storage_offset();
  }
  if (readable) return codes;
  const std::array<int64_t, 4> packed = {sizes[2] * sizes[3] * pixel_bytes, 1, sizes[3] * pixel_bytes, pixel_bytes};
  const Tensor whole = empty({sizes[0], sizes[2], sizes[3], pixel_bytes}, Dtype::Byte);
  const Tensor copy = viewed(whole, sizes, packed);
  copy_into(copy, codes);
  return copy;
}

void check_codes(const Tensor& codes, double scale, int64_t zero_point, const char* op) {
  QDIFF_CHECK(dtype_of(codes) == Dtype::Byte, op, ": codes must be uint8, not ", dtype_of(codes));
  check_positive(scale, "a scale", op);
  QDIFF_CHECK(0 <= zero_point && zero_point <= 255, op, ": zero point ", zero_point, " is not in 0..255");
}

// Images (N, C, H, W) that differ in channels only; returns how many they have together.
int64_t checked_images(const Tensors& codes, const char* op) {
  const Sizes first = sizes_of(codes[0]);
  int64_t channels = 0;
  for (const Tensor& each : codes) {
    const Sizes x = sizes_of(each);
    QDIFF_CHECK(dtype_of(each) == Dtype::Byte && x.size() == 4 && x[1] > 0 && x[2] > 0 && x[3] > 0, op,
                ": codes must be uint8 (N, C, H, W), not ", dtype_of(each), " ", x);
    QDIFF_CHECK(x[0] == first[0] && x[2] == first[2] && x[3] == first[3], op, ": sources ", first, " and ", x,
                " differ in more than channels");
    channels += x[1];
  }
  return channels;
}

// A weight as pack_weight made it, with its scales and sums.
PackedWeight checked_weight(const Tensor& weight, const Tensor& weight_scale, const Tensor& weight_sum, int64_t out_channels,
                            int64_t in_channels, const Window& w, const char* op) {
  const bool nibbles = dtype_of(weight) == Dtype::Byte;
  const int64_t channels = packed_channels(out_channels), quads = ceil_div(in_channels, 4);
  const int64_t taps = w.kernel[0] * w.kernel[1], bytes = weight.numel();
  QDIFF_CHECK((nibbles || dtype_of(weight) == Dtype::Char) && weight.is_contiguous() && bytes % (taps * quads) == 0 &&
                  bytes / (taps * quads) == quad_bytes(out_channels, nibbles),
              op, ": the packed weight has ", bytes, " bytes, not those of ", out_channels, " x ", in_channels, " x ",
              w.kernel[0], " x ", w.kernel[1]);
  QDIFF_CHECK(dtype_of(weight_sum) == Dtype::Int && weight_sum.dim() == 1 && weight_sum.size(0) == channels &&
                  weight_sum.is_contiguous(),
              op, ": weight sums must be those of pack_weight");
  const float* scale = checked_floats(weight_scale, channels, "weight scales", op);
  const int32_t* sum = data_of<int32_t>(weight_sum);
  bool good = true, small = true;
  for (int64_t c = 0; c < channels; ++c) {
    good &= scale[c] >= 0 && scale[c] <= FLT_MAX;
    small &= -kMostWeights <= sum[c] && sum[c] <= kMostWeights;
  }
  QDIFF_CHECK(good, op, ": weight scales must be finite numbers of at least 0");
  QDIFF_CHECK(small, op, ": weight sums must be those of pack_weight, none above ", kMostWeights);
  return {data_of<int8_t>(weight), nibbles, scale, sum};
}

// The scales and sums of a weight of every channel by itself.
struct ChannelMemory {
  Bytes scales, sums;
};

// A weight int8 (h, w, C) with its scales (C,).
PackedWeight checked_channel_weight(const Tensor& weight, const Tensor& weight_scale, int64_t channels, ChannelMemory& memory,
                                    const char* op) {
  QDIFF_CHECK(dtype_of(weight) == Dtype::Char && weight.dim() == 3 && weight.size(2) == channels, op,
              ": the weight must be int8 (h, w, ", channels, "), not ", dtype_of(weight), " ", sizes_of(weight));
  QDIFF_CHECK(weight.is_contiguous(), op, ": the weight must be contiguous");
  const float* scale = checked_floats(weight_scale, channels, "weight scales", op);
  bool good = true;
  for (int64_t c = 0; c < channels; ++c) good &= scale[c] >= 0 && scale[c] <= FLT_MAX;
  QDIFF_CHECK(good, op, ": weight scales must be finite numbers of at least 0");
  const size_t padded = size_t(packed_channels(channels));
  memory.scales = Bytes(padded * sizeof(float)), memory.sums = Bytes(padded * sizeof(int32_t));
  float* scales = memory.scales.data<float>();
  int32_t* sums = memory.sums.data<int32_t>();
  std::fill_n(scales, padded, 0.0f), std::fill_n(sums, padded, 0);
  std::copy_n(scale, channels, scales);
  const int8_t* code = data_of<int8_t>(weight);
  for (int64_t tap = 0; tap < weight.size(0) * weight.size(1); ++tap) {
    for (int64_t c = 0; c < channels; ++c, ++code) sums[c] += *code;
  }
  return {data_of<int8_t>(weight), false, scales, sums};
}

void check_epilogue(const ConvCall& call, const Sizes& sizes) {
  const char* op = call.op;
  const bool gated = call.activation == Activation::geglu;
  checked_floats(call.bias, gated ? 2 * call.out_channels : call.out_channels, "the bias", op);
  if (call.shift.has_value()) {
    const Tensor& shift = *call.shift;
    QDIFF_CHECK(dtype_of(shift) == Dtype::Float && shift.dim() == 2 && shift.size(1) == sizes[1] &&
                    (shift.size(0) == sizes[0] || shift.size(0) == 1),
                op, ": the shift must be float32 (N or 1, ", sizes[1], "), not ", sizes_of(shift));
  }
  if (call.residual.has_value()) {
    check_float(*call.residual, "the residual", op);
    QDIFF_CHECK(sizes_of(*call.residual) == sizes, op, ": the residual ", sizes_of(*call.residual), " is not like the result ",
                sizes);
    QDIFF_CHECK(!gated, op, ": geglu adds no residual");
  }
}

// One source of the call, and the tensor its codes are in.
struct Source {
  Tensor codes;
  SourceMemory memory;
};

}  // namespace

Tensor run_layer(const ConvCall& call) {
  const char* op = call.op;
  check_plain(call.codes, op), check_plain(call.weights, op);
  check_plain(call.weight_scales, op), check_plain(call.weight_sums, op);
  check_plain(call.bias, op), check_plain(call.shift, op), check_plain(call.residual, op);
  const int64_t channels = checked_images(call.codes, op);
  check_within(call.out_channels, 1, kMostElements, "out_channels", op);
  const auto sizes = checked_output(sizes_of(call.codes[0]), channels, call.window, call.out_channels, op);
  const size_t count = call.codes.size();
  std::vector<PackedWeight> weights;
  ChannelMemory channel_memory;
  for (size_t i = 0; i < count; ++i) {
    check_codes(call.codes[i], call.scales[i], call.zero_points[i], op);
    weights.push_back(call.depthwise
                          ? checked_channel_weight(call.weights[i], call.weight_scales[i], channels, channel_memory, op)
                          : checked_weight(call.weights[i], call.weight_scales[i], call.weight_sums[i], call.out_channels,
                                           call.codes[i].size(1), call.window, op));
  }
  check_epilogue(call, sizes);
  Tensor out = channels_last(sizes, call.out_dtype);
  if (out.numel() == 0) return out;

  std::vector<Source> kept;
  std::vector<ConvSource> sources;
  kept.reserve(count), sources.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    Source& source = kept.emplace_back(Source{with_readable_quads(call.codes[i]), {}});
    const Sizes x = sizes_of(source.codes), strides = strides_of(source.codes);
    const Image image = {data_of<uint8_t>(source.codes), x[1], x[2], x[3], strides[0], strides[2], strides[3], call.scales[i],
                         call.zero_points[i]};
    const int32_t offset = call.depthwise ? 0 : kernels().code_offset;
    sources.push_back(conv_source(offset, image, weights[i], call.window, sizes, source.memory));
  }
  const Window& window = call.window;
  Conv p{};
  p.sources = sources.data(), p.source_count = int64_t(count);
  p.batch = sizes[0], p.out_channels = sizes[1], p.out_h = sizes[2], p.out_w = sizes[3];
  p.kernel_h = window.kernel[0], p.kernel_w = window.kernel[1];
  p.stride_h = window.stride[0], p.stride_w = window.stride[1];
  p.dilation_h = window.dilation[0], p.dilation_w = window.dilation[1];
  p.depthwise = call.depthwise;
  p.activation = call.activation;
  p.bias = call.bias.has_value() ? data_of<float>(*call.bias) : nullptr;
  OptionalTensor shift, added;
  if (call.shift.has_value()) {
    shift = call.shift->stride(1) == 1 ? *call.shift : as_contiguous(*call.shift);
    p.shift = data_of<float>(*shift);
    p.shift_stride = shift->size(0) == 1 ? 0 : shift->stride(0);
  }
  if (call.residual.has_value()) {
    added = with_even_pixels(*call.residual);
    p.residual = added->const_data_ptr(), p.residual_type = type_of(dtype_of(*added));
    p.residual_stride = pixel_stride(*added);
  }
  p.out = out.mutable_data_ptr(), p.out_type = type_of(call.out_dtype), p.out_stride = call.out_channels;
  p.quantizer = call.quantizer;
  run_conv(kernels(), p);
  return out;
}

}  // namespace qdiff
