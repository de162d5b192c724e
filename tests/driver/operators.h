// The operators without torch: a case becomes what Kernels take, and a result its bytes, channels last.
#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "case_file.h"
#include "core/candidates.h"
#include "core/convolution.h"
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

inline qdiff::Window window_of(const Case& c) {
  return qdiff::checked_window(c.integers("kernel"), c.integers("stride"), c.integers("padding"), c.integers("dilation"),
                               c.integers("enlarge"), "driver");
}

// One input (N, H, W, C) of a convolution and what it points to. Pixels lie at odd addresses, whole quads, with nothing
// behind the last.
class Source {
 public:
  qdiff::ConvSource source;

  Source(const Tensor& codes, double scale, int64_t zero_point, const Tensor& weight, int64_t bits, const Tensor& scales,
         const qdiff::Window& window, const qdiff::Sizes& out) {
    const int64_t height = codes.sizes[1], width = codes.sizes[2], channels = codes.sizes[3];
    const int64_t bytes = qdiff::ceil_div(channels, 4) * 4, step = bytes + 1, pixels = codes.elements() / channels;
    image_.assign(size_t(pixels * step), 0xa5);
    for (int64_t i = 0; i < pixels; ++i) std::memcpy(&image_[i * step + 1], &codes.bytes[i * channels], size_t(channels));
    pack(weight, channels, bits);
    scales_.assign(sums_.size(), 0.0f);
    std::copy_n(scales.floats(), scales.elements(), scales_.begin());
    const qdiff::Image image{image_.data() + 1, channels, height, width, height * width * step, width * step, step,
                             scale, zero_point};
    const qdiff::PackedWeight packed{packed_.data(), bits <= 4, scales_.data(), sums_.data()};
    source = qdiff::conv_source(qdiff::kKernels.code_offset, image, packed, window, out, memory_);
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

  Bytes image_;
  std::vector<int8_t> packed_;
  std::vector<float> scales_;
  std::vector<int32_t> sums_;
  qdiff::SourceMemory memory_;
};

inline bool takes_winograd(const qdiff::Conv& p) {
  return !p.depthwise && p.kernel_h == 3 && p.kernel_w == 3 && p.stride_h == 1 && p.stride_w == 1 && p.dilation_h == 1 && p.dilation_w == 1;
}

// As qdiff::run_conv, but by so many threads however small the work is.
inline void run_winograd(const qdiff::Conv& p, int64_t threads) {
  const qdiff::Winograd& winograd = *qdiff::kKernels.winograd;
  const int64_t each = winograd.thread_bytes(p, threads);
  const Aligned shared(winograd.shared_bytes(p, threads)), memory(each * threads);
  share(winograd.weight_tasks(p, threads), threads,
        [&](qdiff::Tasks& tasks) { winograd.make_weights(p, shared.data(), tasks); });
  share(winograd.tasks(p, threads), threads,
        [&](qdiff::Tasks& tasks) { winograd.multiply(p, shared.data(), memory.data() + tasks.thread * each, threads, tasks); });
}

using Shape = std::array<int64_t, 4>;

// Of the result, (N, O, H, W), for an image (N, H, W, C).
inline Shape shape_of(const Tensor& image, const qdiff::Window& window, int64_t out_channels) {
  const auto& sizes = image.sizes;
  return qdiff::checked_output({sizes[0], sizes[3], sizes[1], sizes[2]}, sizes[3], window, out_channels, "driver");
}

// The sums of `p`'s sources, and what is made of them.
inline Bytes run_conv(const Case& c, qdiff::Conv p, const Shape& shape, const qdiff::Window& window, const Way& way) {
  const Tensor *shift = c.optional("shift"), *residual = c.optional("residual");
  p.batch = shape[0], p.out_channels = shape[1], p.out_h = shape[2], p.out_w = shape[3];
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

// `codes`: (batch, height, width, channels) of every source.
inline Bytes convolve(const Case& c, const std::vector<Tensor>& codes, const qdiff::Window& window, const Way& way) {
  const auto &weights = c.tensors("weights"), &scales = c.tensors("weight_scales");
  const Shape shape = shape_of(codes[0], window, weights[0].sizes[0]);
  std::vector<std::unique_ptr<Source>> memory;
  std::vector<qdiff::ConvSource> sources;
  for (size_t i = 0; i < weights.size(); ++i) {
    memory.push_back(std::make_unique<Source>(codes[i], c.numbers("scales")[i], c.integers("zero_points")[i], weights[i],
                                              c.integers("bits")[i], scales[i], window, shape));
    sources.push_back(memory.back()->source);
  }
  qdiff::Conv p{};
  p.sources = sources.data(), p.source_count = int64_t(sources.size());
  return run_conv(c, p, shape, window, way);
}

// Every channel by itself, with nothing behind the last: codes (N, H, W, C), weight (h, w, C).
inline Bytes int_depthwise_conv(const Case& c, const Way& way) {
  const Tensor &codes = c.tensor("codes"), &weight = c.tensor("weight"), &scale = c.tensor("weight_scale");
  const int64_t height = codes.sizes[1], width = codes.sizes[2], channels = codes.sizes[3];
  const std::vector<int64_t> kernel{weight.sizes[0], weight.sizes[1]}, enlarge{1, 1};
  const qdiff::Window window = qdiff::checked_window(kernel, c.integers("stride"), c.integers("padding"),
                                                     c.integers("dilation"), enlarge, "driver");
  const Shape shape = shape_of(codes, window, channels);
  auto scales = std::vector<float>(size_t(qdiff::packed_channels(channels)));
  auto sums = std::vector<int32_t>(scales.size());
  std::copy_n(scale.floats(), channels, scales.begin());
  for (int64_t i = 0; i < weight.elements(); ++i) sums[size_t(i % channels)] += weight.codes()[i];
  const qdiff::Image image{codes.bytes.data(), channels, height, width, height * width * channels, width * channels, channels,
                           c.number("scale"), c.integer("zero_point")};
  qdiff::SourceMemory memory;
  const qdiff::ConvSource source =
      qdiff::conv_source(0, image, {weight.codes(), false, scales.data(), sums.data()}, window, shape, memory);
  qdiff::Conv p{};
  p.sources = &source, p.source_count = 1, p.depthwise = true;
  return run_conv(c, p, shape, window, way);
}

inline Bytes int_conv(const Case& c, const Way& way) { return convolve(c, c.tensors("codes"), window_of(c), way); }

// Of (rows, features); of two weights the second is that of the gates.
inline Bytes int_linear(const Case& c, const Way& way) {
  Tensor image = c.tensor("codes");
  image.sizes = {image.sizes[0], 1, 1, image.sizes[1]};
  const qdiff::Window window{{1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}, {1, 1}};
  return convolve(c, {c.tensors("weights").size(), image}, window, way);
}

// ---------------------------------------------------------------------------------------------- second moments

// Of rows (rows, columns), added to a total (columns, 4 * columns) of the bytes of 32-bit numbers.
inline Bytes int_gram(const Case& c, const Way& way) {
  const Tensor &rows = c.tensor("rows"), &total = c.tensor("total");
  std::vector<int32_t> sums(total.bytes.size() / sizeof(int32_t));
  std::memcpy(sums.data(), total.bytes.data(), total.bytes.size());
  const qdiff::Gram p{rows.codes(), rows.sizes[0], rows.sizes[1], sums.data()};
  const qdiff::SecondMoments& moments = *qdiff::kKernels.second_moments;
  const Aligned memory(moments.bytes(p));
  for (int64_t run = 0; run < moments.runs(p); ++run) {
    share(moments.pack_tasks(p), way.threads, [&](qdiff::Tasks& tasks) { moments.pack(p, run, memory.data(), tasks); });
    share(moments.tasks(p), way.threads, [&](qdiff::Tasks& tasks) { moments.multiply(p, run, memory.data(), tasks); });
  }
  Bytes out(total.bytes.size());
  std::memcpy(out.data(), sums.data(), out.size());
  return out;
}

// Of steps (columns, channels): as floats one behind the other the codes, what they leave over, and its sums.
inline Bytes round_with_feedback(const Case& c, const Way& way) {
  const Tensor& steps = c.tensor("steps");
  const int64_t numbers = steps.elements();
  qdiff::FeedbackRounding p{};
  p.columns = steps.sizes[0], p.channels = steps.sizes[1];
  p.steps = steps.floats(), p.pull = c.tensor("pull").floats(), p.factor = c.tensor("factor").floats();
  p.low = float(c.integer("low")), p.high = float(c.integer("high"));
  std::vector<int8_t> codes(static_cast<size_t>(numbers));
  std::vector<float> found(static_cast<size_t>(2 * numbers + p.channels));
  p.codes = codes.data(), p.left = found.data() + numbers, p.error = p.left + numbers;
  const int64_t tasks = qdiff::ceil_div(p.channels, qdiff::kFeedbackChannels);
  share(tasks, way.threads, [&](qdiff::Tasks& each) { qdiff::kKernels.round_with_feedback(p, each); });
  std::copy(codes.begin(), codes.end(), found.begin());
  Bytes out(found.size() * sizeof(float));
  std::memcpy(out.data(), found.data(), out.size());
  return out;
}

// --------------------------------------------------------------------------------------- weights and what is watched

// Of rows (rows, columns): as floats one behind the other the codes and the scales.
inline Bytes nearest_codes(const Case& c, const Way& way) {
  const Tensor& weight = c.tensor("weight");
  const double power = c.number("power");
  const auto tried = qdiff::candidates_of(c.integer("candidates"), c.number("shrink"), power);
  qdiff::NearestCodes p{};
  p.weight = weight.bytes.data(), p.type = weight.type, p.rows = weight.sizes[0], p.columns = weight.sizes[1];
  qdiff::set_search(p, int32_t(c.integer("bits")), power, tried);
  const int64_t numbers = p.rows * p.columns;
  std::vector<int8_t> codes(static_cast<size_t>(numbers));
  std::vector<float> found(static_cast<size_t>(numbers + p.rows));
  const Aligned scratch(way.threads * p.scratch_numbers * int64_t(sizeof(float)));
  p.scratch = reinterpret_cast<float*>(scratch.data()), p.codes = codes.data(), p.scales = found.data() + numbers;
  share(p.rows, way.threads, [&](qdiff::Tasks& each) { qdiff::kKernels.nearest_codes(p, each); });
  std::copy(codes.begin(), codes.end(), found.begin());
  Bytes out(found.size() * sizeof(float));
  std::memcpy(out.data(), found.data(), out.size());
  return out;
}

inline Bytes histogram(const Case& c, const Way& way) {
  const Tensor& rows = c.tensor("rows");
  qdiff::Histogram p{};
  p.in = rows.bytes.data(), p.type = rows.type, p.rows = rows.sizes[0], p.columns = rows.sizes[1];
  p.step = c.integer("step"), p.exponent = int32_t(c.integer("exponent")), p.bins = c.integer("bins");
  std::vector<uint32_t> counts(static_cast<size_t>(way.threads * qdiff::kCounters * p.bins));
  p.counts = counts.data();
  share(p.rows * qdiff::histogram_tasks_of_row(p), way.threads,
        [&](qdiff::Tasks& each) { qdiff::kKernels.histogram(p, each); });
  std::vector<int64_t> found(static_cast<size_t>(p.bins));
  for (size_t i = 0; i < counts.size(); ++i) found[i % found.size()] += counts[i];
  Bytes out(found.size() * sizeof(int64_t));
  std::memcpy(out.data(), found.data(), out.size());
  return out;
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
