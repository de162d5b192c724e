// The operators without torch: a case becomes what Kernels take, and a result its bytes, channels last.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "case_file.h"
#include "core/kernels.h"

// How a case is run; what it gives may not depend on it.
struct Way {
  int64_t threads;
  bool winograd;
};

class Aligned {
 public:
  explicit Aligned(int64_t bytes) : memory_(std::aligned_alloc(64, size_t(bytes + 63) / 64 * 64), std::free) {}
  uint8_t* data() const { return static_cast<uint8_t*>(memory_.get()); }

 private:
  std::unique_ptr<void, void (*)(void*)> memory_;
};

template <typename Run>
void in_threads(int64_t threads, const Run& run) {
  if (threads == 1) return run(0);
  std::vector<std::thread> all;
  for (int64_t thread = 0; thread < threads; ++thread) all.emplace_back([&run, thread] { run(thread); });
  for (auto& each : all) each.join();
}

// Tasks one at a time, each thread's own first.
template <typename Run>
void share(int64_t count, int64_t threads, const Run& run) {
  qdiff::TaskPool pool;
  pool.threads = threads, pool.grain = 1;
  pool.share(count);
  in_threads(threads, [&](int64_t thread) {
    qdiff::Tasks tasks{pool, thread};
    run(tasks);
  });
}

inline qdiff::Type type_of(const Case& c) { return static_cast<qdiff::Type>(c.integer("out_dtype")); }

inline qdiff::Quantizer quantizer_of(const Case& c, const std::string& before = "out_") {
  return {float(c.number(before + "scale")), int32_t(c.integer(before + "zero_point")), int32_t(c.integer(before + "low")),
          int32_t(c.integer(before + "high"))};
}

inline qdiff::Activation activation_of(const Case& c) { return static_cast<qdiff::Activation>(c.integer("activation")); }

inline const float* floats_of(const Tensor* x) { return x ? x->floats() : nullptr; }

// ------------------------------------------------------------------------------------------------ convolutions

struct Window {
  std::vector<int64_t> kernel, stride, padding, dilation, enlarge;

  int64_t out(int64_t size, int dim) const {
    const int64_t padded = size * enlarge[dim] + padding[2 * dim] + padding[2 * dim + 1];
    return (padded - dilation[dim] * (kernel[dim] - 1) - 1) / stride[dim] + 1;
  }

  // Of every row or column that the window reaches, where it is in the image; -1 is padding.
  std::vector<int64_t> map(int64_t size, int dim) const {
    const int64_t reach = (out(size, dim) - 1) * stride[dim] + (kernel[dim] - 1) * dilation[dim] + 1;
    std::vector<int64_t> made;
    for (int64_t i = 0; i < reach; ++i) {
      const int64_t at = i - padding[2 * dim];
      made.push_back(at < 0 || at >= size * enlarge[dim] ? -1 : at / enlarge[dim]);
    }
    return made;
  }
};

// One input of a convolution and what it points to. Pixels lie at odd addresses, whole quads with nothing behind the last.
class Source {
 public:
  qdiff::ConvSource source{};

  Source(const Tensor& codes, double scale, int64_t zero_point, const Tensor& weight, int64_t bits, const Tensor& scales,
         const Window& window) {
    const int64_t channels = codes.sizes[3], quads = qdiff::ceil_div(channels, 4), step = quads * 4 + 1;
    const int64_t pixels = codes.elements() / channels;
    image_.assign(size_t(pixels * step), 0xa5);
    for (int64_t i = 0; i < pixels; ++i) std::memcpy(&image_[i * step + 1], &codes.bytes[i * channels], size_t(channels));
    outside_.assign(size_t(quads * 4), uint8_t(zero_point));
    pack(weight, channels, bits);
    scales_.assign(sums_.size(), 0.0f);
    std::copy_n(scales.floats(), scales.elements(), scales_.begin());
    for (const int32_t sum : sums_) start_.push_back((qdiff::kKernels.code_offset - int32_t(zero_point)) * sum);
    rows_ = window.map(codes.sizes[1], 0), cols_ = window.map(codes.sizes[2], 1);
    source.codes = image_.data() + 1;
    source.stride_w = step, source.stride_h = step * codes.sizes[2], source.stride_n = source.stride_h * codes.sizes[1];
    source.row_map = rows_.data(), source.col_map = cols_.data(), source.outside = outside_.data();
    source.quads = quads;
    source.weight = packed_.data(), source.nibbles = bits <= 4;
    source.weight_scale = scales_.data(), source.start = start_.data(), source.sums = sums_.data();
    source.zero_point = int32_t(zero_point), source.scale = float(scale);
  }
  Source(const Source&) = delete;

 private:
  void pack(const Tensor& weight, int64_t channels, int64_t bits) {
    const int64_t out = weight.sizes[0], taps = weight.elements() / (out * channels);
    const int64_t strides[3] = {channels * taps, taps, 1};
    packed_.resize(size_t(taps * qdiff::ceil_div(channels, 4) * qdiff::quad_bytes(out, bits <= 4)));
    sums_.resize(size_t(qdiff::packed_channels(out)));
    qdiff::pack_weight(weight.codes(), out, channels, taps, strides, bits <= 4, packed_.data(), sums_.data(), 0,
                       qdiff::ceil_div(out, qdiff::kBlockChannels));
  }

  Bytes image_, outside_;
  std::vector<int8_t> packed_;
  std::vector<float> scales_;
  std::vector<int32_t> sums_, start_;
  std::vector<int64_t> rows_, cols_;
};

inline bool takes_winograd(const qdiff::Conv& p) {
  return p.kernel_h == 3 && p.kernel_w == 3 && p.stride_h == 1 && p.stride_w == 1 && p.dilation_h == 1 && p.dilation_w == 1;
}

inline void run_winograd(const qdiff::Conv& p, int64_t threads) {
  const qdiff::Winograd& winograd = *qdiff::kKernels.winograd;
  const int64_t each = winograd.thread_bytes(p, threads);
  const Aligned shared(winograd.shared_bytes(p, threads)), own(each * threads);
  for (int64_t run = 0; run < winograd.runs(p, threads); ++run) {
    share(winograd.input_tasks(p, run, threads), threads,
          [&](qdiff::Tasks& tasks) { winograd.transform_input(p, run, shared.data(), threads, tasks); });
    share(winograd.tasks(p, threads), threads, [&](qdiff::Tasks& tasks) {
      winograd.multiply(p, run, shared.data(), own.data() + tasks.thread * each, threads, tasks);
    });
  }
}

// `codes`: (batch, height, width, channels) of every source.
inline Bytes convolve(const Case& c, const std::vector<Tensor>& codes, const Window& window, const Way& way) {
  const auto &weights = c.tensors("weights"), &scales = c.tensors("weight_scales");
  std::vector<std::unique_ptr<Source>> memory;
  std::vector<qdiff::ConvSource> sources;
  for (size_t i = 0; i < weights.size(); ++i) {
    memory.push_back(std::make_unique<Source>(codes[i], c.numbers("scales")[i], c.integers("zero_points")[i], weights[i],
                                              c.integers("bits")[i], scales[i], window));
    sources.push_back(memory.back()->source);
  }
  const Tensor *shift = c.optional("shift"), *residual = c.optional("residual");
  qdiff::Conv p{};
  p.sources = sources.data(), p.source_count = int64_t(sources.size());
  p.batch = codes[0].sizes[0], p.out_h = window.out(codes[0].sizes[1], 0), p.out_w = window.out(codes[0].sizes[2], 1);
  p.out_channels = weights[0].sizes[0];
  p.kernel_h = window.kernel[0], p.kernel_w = window.kernel[1], p.stride_h = window.stride[0], p.stride_w = window.stride[1];
  p.dilation_h = window.dilation[0], p.dilation_w = window.dilation[1];
  p.bias = floats_of(c.optional("bias"));
  p.shift = floats_of(shift), p.shift_stride = shift && shift->sizes[0] > 1 ? p.out_channels : 0;
  if (residual) p.residual = residual->bytes.data(), p.residual_type = residual->type, p.residual_stride = p.out_channels;
  p.activation = activation_of(c);
  p.out_type = type_of(c), p.out_stride = p.out_channels, p.quantizer = quantizer_of(c);
  Bytes out(size_t(p.batch * p.out_h * p.out_w * p.out_channels * size_of(p.out_type)));
  if (out.empty()) return out;
  p.out = out.data();
  if (way.winograd && takes_winograd(p)) {
    run_winograd(p, way.threads);
  } else {
    share(qdiff::kKernels.conv_tasks(p), way.threads, [&](qdiff::Tasks& tasks) { qdiff::kKernels.conv(p, tasks); });
  }
  return out;
}

inline Bytes int_conv(const Case& c, const Way& way) {
  const Window window{c.integers("kernel"), c.integers("stride"), c.integers("padding"), c.integers("dilation"),
                      c.integers("enlarge")};
  return convolve(c, c.tensors("codes"), window, way);
}

// Of (rows, features); of two weights the second is that of the gates.
inline Bytes int_linear(const Case& c, const Way& way) {
  Tensor image = c.tensor("codes");
  image.sizes = {image.sizes[0], 1, 1, image.sizes[1]};
  const Window window{{1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}, {1, 1}};
  return convolve(c, {c.tensors("weights").size(), image}, window, way);
}

// ------------------------------------------------------------------------------------------------------- norms

inline qdiff::Norm norm_of(const Case& c, const std::vector<Tensor>& parts) {
  qdiff::Norm p{};
  for (const Tensor& part : parts) {
    p.parts[p.part_count] = part.bytes.data();
    p.part_channels[p.part_count] = p.part_stride[p.part_count] = part.sizes.back();
    p.channels += p.part_channels[p.part_count++];
  }
  p.type = parts[0].type;
  p.weight = floats_of(c.optional("weight")), p.bias = floats_of(c.optional("bias"));
  p.epsilon = c.number("epsilon");
  p.out_type = type_of(c), p.out_stride = p.channels, p.quantizer = quantizer_of(c, "");
  return p;
}

// Parts are (batch, pixels, channels).
inline Bytes group_norm_act(const Case& c, const Way& way) {
  const auto& parts = c.tensors("parts");
  qdiff::Norm p = norm_of(c, parts);
  p.batch = parts[0].sizes[0], p.pixels = parts[0].sizes[1], p.groups = c.integer("groups");
  p.activation = activation_of(c);
  Bytes out(size_t(p.batch * p.pixels * p.channels * size_of(p.out_type)));
  p.out = out.data();
  const int64_t splits = qdiff::kKernels.norm_splits(p, way.threads);
  share(p.batch * splits, way.threads, [&](qdiff::Tasks& tasks) { qdiff::kKernels.group_norm(p, splits, tasks); });
  return out;
}

// Of (rows, channels).
inline Bytes layer_norm_act(const Case& c, const Way& way) {
  const Tensor& x = c.tensor("x");
  qdiff::Norm p = norm_of(c, {x});
  p.parts[0] = x.bytes.data();
  Bytes out(size_t(x.elements() * size_of(p.out_type)));
  p.out = out.data();
  share(x.sizes[0], way.threads, [&](qdiff::Tasks& tasks) { qdiff::kKernels.layer_norm(p, tasks); });
  return out;
}

// ------------------------------------------------------------------------------------------------- activations

// Of (rows, channels).
inline Bytes pointwise(const Case& c, qdiff::Pointwise p, const Way& way) {
  const Tensor& x = c.tensor("x");
  p.in = x.bytes.data(), p.type = x.type;
  p.activation = activation_of(c);
  p.rows = x.sizes[0], p.in_stride = x.sizes[1];
  p.channels = p.out_stride = p.activation == qdiff::Activation::geglu ? x.sizes[1] / 2 : x.sizes[1];
  p.quantizer = quantizer_of(c, "");
  Bytes out(size_t(p.rows * p.channels * size_of(p.out_type)));
  p.out = out.data();
  share(p.rows, way.threads, [&](qdiff::Tasks& tasks) { qdiff::kKernels.pointwise(p, tasks); });
  return out;
}

inline Bytes act_quantize(const Case& c, const Way& way) {
  qdiff::Pointwise p{};
  p.out_type = type_of(c);
  return pointwise(c, p, way);
}

inline Bytes act_quantize_rest(const Case& c, const Way& way) {
  qdiff::Pointwise p{};
  p.out_type = qdiff::Type::u8, p.of_rest = true;
  p.rest = {float(c.number("rest_scale")), int32_t(c.integer("rest_zero_point")), 0, 255};
  return pointwise(c, p, way);
}

// --------------------------------------------------------------------------------------------------- attention

// (batch, heads, tokens, dims), the distances between all but the last.
inline void dense_strides(const std::vector<int64_t>& sizes, int64_t (&strides)[3]) {
  strides[2] = sizes[3], strides[1] = sizes[2] * strides[2], strides[0] = sizes[1] * strides[1];
}

inline Bytes int_attention_vnni(const Case& c, const Way& way) {
  const qdiff::Kernel& kernel = *qdiff::kKernels.attention;
  const Tensor &q = c.tensor("q"), &k = c.tensor("k"), &v = c.tensor("v"), *mask = c.optional("mask");
  qdiff::Attention p{};
  p.q = q.bytes.data(), p.k = k.codes(), p.v = v.codes(), p.mask = floats_of(mask);
  p.batch = q.sizes[0], p.heads = q.sizes[1], p.query_len = q.sizes[2], p.head_dim = q.sizes[3], p.key_len = k.sizes[2];
  dense_strides(q.sizes, p.q_stride), dense_strides(k.sizes, p.k_stride), dense_strides(v.sizes, p.v_stride);
  dense_strides(q.sizes, p.out_stride);
  if (mask) dense_strides(mask->sizes, p.mask_stride);
  p.q_zero_point = int32_t(c.integer("q_zero_point"));
  p.score_scale = float(c.number("softmax_scale") * c.number("q_scale") * c.number("k_scale"));
  p.v_scale = float(c.number("v_scale"));
  p.levels = int32_t((int64_t{1} << c.integer("prob_bits")) - 1);
  p.out_type = type_of(c), p.quantizer = quantizer_of(c);
  Bytes out(size_t(q.elements() * size_of(p.out_type)));
  p.out = out.data();
  const qdiff::Plan plan = kernel.plan(p);
  const Aligned packed(int64_t(plan.packed_bytes));
  const auto part = [&](int64_t count, int64_t thread) { return count * thread / way.threads; };
  in_threads(way.threads, [&](int64_t thread) {
    kernel.pack(p, packed.data(), part(plan.pack_tasks, thread), part(plan.pack_tasks, thread + 1));
  });
  in_threads(way.threads, [&](int64_t thread) {
    const Aligned scratch(int64_t(plan.scratch_bytes));
    kernel.attend(p, packed.data(), scratch.data(), part(plan.attend_tasks, thread), part(plan.attend_tasks, thread + 1));
  });
  return out;
}
