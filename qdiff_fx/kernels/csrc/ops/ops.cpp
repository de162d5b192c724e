// The qdiff operators on CPU: checks, memory layout, threads. The arithmetic is in Kernels.

#include "ops/checks.h"
#include "core/kernels.h"
#include "ops/pool.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

namespace {

using at::IntArrayRef;
using at::Tensor;
using at::TensorList;
using qdiff::Activation;
using qdiff::ceil_div;
using qdiff::check_epsilon;
using qdiff::check_float;
using qdiff::check_plain;
using qdiff::check_positive;
using qdiff::check_within;
using qdiff::checked_activation;
using qdiff::checked_elements;
using qdiff::checked_floats;
using qdiff::checked_quantizer;
using qdiff::kKernels;
using qdiff::type_of;
using OptionalTensor = std::optional<Tensor>;

// ------------------------------------------------------------------------------------------------ threads

// Every thread calls `run` with its tasks; `work` is that of all of them, in some unit of about a nanosecond.
template <typename Run>
void parallel(int64_t count, int64_t work, bool one_by_one, const Run& run) {
  // A thread is worth waking for some ten microseconds of work.
  constexpr int64_t kWorkPerThread = 1 << 14, kTakesPerThread = 8;
  if (count == 0) return;
  const int64_t most = std::min<int64_t>({count, at::get_num_threads(), qdiff::TaskPool::kMaxThreads});
  qdiff::TaskPool pool;
  pool.threads = std::clamp<int64_t>(work / kWorkPerThread, 1, most);
  pool.grain = one_by_one ? 1 : std::max<int64_t>(1, count / (pool.threads * kTakesPerThread));
  pool.share(count);
  const auto one = [&](int64_t thread) {
    qdiff::Tasks tasks{pool, thread};
    run(tasks);
  };
  if (pool.threads == 1) return one(0);
  at::parallel_for(0, pool.threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) one(thread);
  });
}

// ------------------------------------------------------------------------------------------------- memory

// Uninitialised (N, C, ...) whose channels lie side by side.
Tensor channels_last(IntArrayRef sizes, at::ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  int64_t step = sizes[1];
  for (size_t dim = sizes.size(); dim-- > 2;) strides[dim] = step, step *= sizes[dim];
  strides[0] = step;
  return qdiff::pooled(sizes, strides, dtype);
}

// Whether the pixels of (N, C, ...) follow each other at one distance and their channels lie side by side.
bool has_even_pixels(const Tensor& x) {
  if (x.size(1) > 1 && x.stride(1) != 1) return false;
  int64_t expected = -1;
  const auto follows = [&](int64_t dim) {
    if (x.size(dim) == 1) return true;
    const bool even = expected < 0 ? x.stride(dim) >= x.size(1) : x.stride(dim) == expected;
    expected = x.stride(dim) * x.size(dim);
    return even;
  };
  for (int64_t dim = x.dim() - 1; dim >= 2; --dim) {
    if (!follows(dim)) return false;
  }
  return follows(0);
}

int64_t pixel_stride(const Tensor& x) {
  for (int64_t dim = x.dim() - 1; dim >= 2; --dim) {
    if (x.size(dim) != 1) return x.stride(dim);
  }
  return x.size(0) != 1 ? x.stride(0) : x.size(1);
}

Tensor with_even_pixels(const Tensor& x) {
  if (has_even_pixels(x)) return x;
  Tensor copy = channels_last(x.sizes(), x.scalar_type());
  return copy.copy_(x);
}

int64_t pixels_of(const Tensor& x) {
  int64_t count = 1;
  for (int64_t dim = 2; dim < x.dim(); ++dim) count *= x.size(dim);
  return count;
}

// ------------------------------------------------------------------------------------------------ weights

// That codes have so many bits.
void check_codes(const Tensor& dense, int64_t bits) {
  const int8_t* code = dense.const_data_ptr<int8_t>();
  int8_t least = 0, most = 0;
  for (int64_t i = 0; i < dense.numel(); ++i) least = std::min(least, code[i]), most = std::max(most, code[i]);
  const int limit = 1 << (bits - 1);
  TORCH_CHECK(-limit <= least && most < limit, "pack_weight: codes of ", bits, " bits are ", -limit, " to ", limit - 1,
              ", these are not");
}

// That no sum of (code - zero point) * weight, the first factor of at most 255, exceeds 32 bits.
void check_sums(const Tensor& dense, int64_t inputs) {
  if (inputs * 128 <= qdiff::kMostWeights) return;
  const int8_t* code = dense.const_data_ptr<int8_t>();
  for (int64_t o = 0; o < dense.size(0); ++o) {
    int64_t sum = 0;
    for (int64_t i = 0; i < inputs; ++i, ++code) sum += std::abs(int32_t(*code));
    TORCH_CHECK(sum <= qdiff::kMostWeights, "pack_weight: its ", inputs, " weights per output channel can add up to 255 * ",
                sum, ", more than 32 bits hold");
  }
}

std::tuple<Tensor, Tensor> pack_weight(const Tensor& codes, int64_t bits) {
  check_plain(codes, "pack_weight");
  TORCH_CHECK(2 <= bits && bits <= 8, "pack_weight: weights have 2 to 8 bits, not ", bits);
  TORCH_CHECK(codes.scalar_type() == at::kChar && codes.dim() >= 2 && codes.dim() <= 4 && codes.numel() > 0,
              "pack_weight: expected int8 codes (out, in), (out, in, w) or (out, in, h, w), not ", codes.scalar_type(), " ",
              codes.sizes());
  const Tensor dense = codes.contiguous();
  const int64_t out = dense.size(0), in = dense.size(1), taps = dense.numel() / (out * in);
  check_codes(dense, bits);
  check_sums(dense, in * taps);
  const int64_t strides[3] = {in * taps, taps, 1};
  const bool nibbles = bits <= 4;
  // Of one input channel a weight grows by 4, of one output channel by 16.
  const int64_t bytes = taps * ceil_div(in, 4) * qdiff::quad_bytes(out, nibbles);
  Tensor packed = at::empty({bytes}, codes.options().dtype(nibbles ? at::kByte : at::kChar));
  Tensor sums = at::empty({qdiff::packed_channels(out)}, codes.options().dtype(at::kInt));
  at::parallel_for(0, ceil_div(out, qdiff::kBlockChannels), 1, [&](int64_t begin, int64_t end) {
    qdiff::pack_weight(dense.const_data_ptr<int8_t>(), out, in, taps, strides, nibbles, static_cast<int8_t*>(packed.data_ptr()),
                       sums.data_ptr<int32_t>(), begin, end);
  });
  return {packed, sums};
}

// -------------------------------------------------------------------------------------------- convolution

// What one source of a convolution needs besides its tensors.
struct SourceMemory {
  Tensor codes, outside, start;
  std::vector<int64_t> rows, cols;
};

Tensor with_readable_quads(const Tensor& codes) {
  // (N, C, H, W): the last quad of a pixel is read whole, and so must exist.
  const int64_t pixel_bytes = ceil_div(codes.size(1), 4) * 4;
  const bool side_by_side = codes.size(1) == 1 || codes.stride(1) == 1;
  bool readable = side_by_side && codes.size(1) == pixel_bytes;
  if (side_by_side && !readable) {
    int64_t last = 0;
    for (int64_t dim = 0; dim < 4; ++dim) last += dim == 1 ? 0 : (codes.size(dim) - 1) * codes.stride(dim);
    const int64_t available = int64_t(codes.storage().nbytes()) - codes.storage_offset();
    readable = last + pixel_bytes <= available;
  }
  if (readable) return codes;
  const Tensor whole = at::empty({codes.size(0), codes.size(2), codes.size(3), pixel_bytes}, codes.options());
  Tensor copy = whole.narrow(3, 0, codes.size(1)).permute({0, 3, 1, 2});
  return copy.copy_(codes);
}

std::vector<int64_t> index_map(int64_t size, int64_t enlarged, int64_t pad_before, int64_t reach) {
  std::vector<int64_t> map(reach);
  for (int64_t i = 0; i < reach; ++i) {
    const int64_t at = i - pad_before;
    map[i] = at < 0 || at >= enlarged ? -1 : at * size / enlarged;
  }
  return map;
}

struct Window {
  int64_t kernel[2], stride[2], pad[4], dilation[2], enlarge[2];  // pad: top, bottom, left, right

  int64_t reach(int64_t out, int dim) const { return (out - 1) * stride[dim] + (kernel[dim] - 1) * dilation[dim] + 1; }
};

Window window_of(IntArrayRef kernel, IntArrayRef stride, IntArrayRef pad, IntArrayRef dilation, IntArrayRef enlarge,
                 const char* op) {
  TORCH_CHECK(kernel.size() == 2 && stride.size() == 2 && pad.size() == 4 && dilation.size() == 2 && enlarge.size() == 2,
              op, ": kernel, stride, dilation and enlarge need two numbers, padding four");
  Window w{};
  for (int i = 0; i < 2; ++i) {
    w.kernel[i] = kernel[i], w.stride[i] = stride[i], w.dilation[i] = dilation[i], w.enlarge[i] = enlarge[i];
    check_within(kernel[i], 1, qdiff::kMaxTaps, "kernel", op);
    check_within(stride[i], 1, qdiff::kMostExtent, "stride", op);
    check_within(dilation[i], 1, qdiff::kMostExtent, "dilation", op);
    check_within(enlarge[i], 1, qdiff::kMostEnlarge, "enlarge", op);
  }
  for (int i = 0; i < 4; ++i) {
    w.pad[i] = pad[i];
    check_within(pad[i], -qdiff::kMostExtent, qdiff::kMostExtent, "padding", op);
  }
  TORCH_CHECK(kernel[0] * kernel[1] <= qdiff::kMaxTaps, op, ": kernels of more than ", qdiff::kMaxTaps,
              " taps are not supported");
  return w;
}

void check_codes(const Tensor& codes, double scale, int64_t zero_point, const char* op) {
  TORCH_CHECK(codes.scalar_type() == at::kByte, op, ": codes must be uint8, not ", codes.scalar_type());
  check_positive(scale, "a scale", op);
  TORCH_CHECK(0 <= zero_point && zero_point <= 255, op, ": zero point ", zero_point, " is not in 0..255");
}

// Images (N, C, H, W) that differ in channels only.
void check_images(TensorList codes, const char* op) {
  for (const Tensor& x : codes) {
    TORCH_CHECK(x.scalar_type() == at::kByte && x.dim() == 4 && x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, op,
                ": codes must be uint8 (N, C, H, W), not ", x.scalar_type(), " ", x.sizes());
    TORCH_CHECK(x.size(0) == codes[0].size(0) && x.size(2) == codes[0].size(2) && x.size(3) == codes[0].size(3), op,
                ": sources ", codes[0].sizes(), " and ", x.sizes(), " differ in more than channels");
  }
}

// The shape (N, O, H, W) of the result.
std::array<int64_t, 4> checked_output(TensorList codes, const Window& w, int64_t out_channels, const char* op) {
  const Tensor& x = codes[0];
  int64_t channels = 0, padded[2], out[2];
  for (const Tensor& each : codes) channels += each.size(1);
  for (int dim = 0; dim < 2; ++dim) {
    // No factor exceeds 2^34.
    padded[dim] = x.size(2 + dim) * w.enlarge[dim] + w.pad[2 * dim] + w.pad[2 * dim + 1];
    check_within(padded[dim], 0, qdiff::kMostExtent, "the height and width of the padded, enlarged image", op);
    const int64_t room = padded[dim] - (w.dilation[dim] * (w.kernel[dim] - 1) + 1);
    TORCH_CHECK(room >= 0, op, ": the kernel is larger than the padded input ", x.sizes());
    out[dim] = room / w.stride[dim] + 1;
  }
  checked_elements({x.size(0), channels, padded[0], padded[1]}, op);
  const std::array<int64_t, 4> sizes = {x.size(0), out_channels, out[0], out[1]};
  checked_elements(sizes, op);
  return sizes;
}

// A weight as pack_weight made it, with its scales and sums.
void check_packed(const Tensor& weight, const Tensor& weight_scale, const Tensor& weight_sum, int64_t out_channels,
                  int64_t in_channels, const Window& w, const char* op) {
  const bool nibbles = weight.scalar_type() == at::kByte;
  const int64_t channels = qdiff::packed_channels(out_channels), quads = ceil_div(in_channels, 4);
  const int64_t taps = w.kernel[0] * w.kernel[1];
  TORCH_CHECK((nibbles || weight.scalar_type() == at::kChar) && weight.is_contiguous() &&
                  weight.numel() % (taps * quads) == 0 &&
                  weight.numel() / (taps * quads) == qdiff::quad_bytes(out_channels, nibbles),
              op, ": the packed weight has ", weight.numel(), " bytes, not those of ", out_channels, " x ", in_channels,
              " x ", w.kernel[0], " x ", w.kernel[1]);
  TORCH_CHECK(weight_sum.scalar_type() == at::kInt && weight_sum.dim() == 1 && weight_sum.size(0) == channels &&
                  weight_sum.is_contiguous(),
              op, ": weight sums must be those of pack_weight");
  const float* scale = checked_floats(weight_scale, channels, "weight scales", op);
  const int32_t* sum = weight_sum.const_data_ptr<int32_t>();
  bool good = true, small = true;
  for (int64_t c = 0; c < channels; ++c) {
    good &= scale[c] >= 0 && scale[c] <= FLT_MAX;
    small &= -qdiff::kMostWeights <= sum[c] && sum[c] <= qdiff::kMostWeights;
  }
  TORCH_CHECK(good, op, ": weight scales must be finite numbers of at least 0");
  TORCH_CHECK(small, op, ": weight sums must be those of pack_weight, none above ", qdiff::kMostWeights);
}

qdiff::ConvSource source_of(const Tensor& codes, double scale, int64_t zero_point, const Tensor& weight,
                            const Tensor& weight_scale, const Tensor& weight_sum, const Window& w, IntArrayRef out,
                            SourceMemory& memory) {
  const int64_t quads = ceil_div(codes.size(1), 4), channels = qdiff::packed_channels(out[1]);
  const bool nibbles = weight.scalar_type() == at::kByte;
  memory.codes = with_readable_quads(codes);
  memory.outside = at::full({quads * 4}, zero_point, at::TensorOptions().dtype(at::kByte));
  memory.start = at::empty({channels}, weight_sum.options());
  const int32_t* sums = weight_sum.const_data_ptr<int32_t>();
  int32_t* start = memory.start.data_ptr<int32_t>();
  for (int64_t c = 0; c < channels; ++c) start[c] = (kKernels.code_offset - int32_t(zero_point)) * sums[c];
  memory.rows = index_map(codes.size(2), codes.size(2) * w.enlarge[0], w.pad[0], w.reach(out[2], 0));
  memory.cols = index_map(codes.size(3), codes.size(3) * w.enlarge[1], w.pad[2], w.reach(out[3], 1));
  qdiff::ConvSource s{};
  s.codes = memory.codes.const_data_ptr<uint8_t>();
  s.stride_n = memory.codes.stride(0), s.stride_h = memory.codes.stride(2), s.stride_w = memory.codes.stride(3);
  s.row_map = memory.rows.data(), s.col_map = memory.cols.data();
  s.outside = memory.outside.const_data_ptr<uint8_t>();
  s.quads = quads;
  s.weight = static_cast<const int8_t*>(weight.const_data_ptr());
  s.nibbles = nibbles;
  s.weight_scale = weight_scale.const_data_ptr<float>();
  s.start = start;
  s.sums = sums, s.zero_point = int32_t(zero_point);
  s.scale = float(scale);
  return s;
}

// What a convolution and a linear layer have in common.
struct ConvCall {
  TensorList codes;
  at::ArrayRef<double> scales;
  IntArrayRef zero_points;
  TensorList weights, weight_scales, weight_sums;
  int64_t out_channels;
  Window window;
  const OptionalTensor &bias, &shift, &residual;
  Activation activation;
  at::ScalarType out_dtype;
  qdiff::Quantizer quantizer;
  const char* op;
};

// Everything but the quantizer, which was checked when it was made; returns the shape of the result.
std::array<int64_t, 4> check_call(const ConvCall& call) {
  const char* op = call.op;
  const bool gated = call.activation == Activation::geglu;
  check_plain(call.codes, op), check_plain(call.weights, op);
  check_plain(call.weight_scales, op), check_plain(call.weight_sums, op);
  check_plain(call.bias, op), check_plain(call.shift, op), check_plain(call.residual, op);
  check_images(call.codes, op);
  check_within(call.out_channels, 1, qdiff::kMostElements, "out_channels", op);
  const auto sizes = checked_output(call.codes, call.window, call.out_channels, op);
  for (size_t i = 0; i < call.codes.size(); ++i) {
    check_codes(call.codes[i], call.scales[i], call.zero_points[i], op);
    check_packed(call.weights[i], call.weight_scales[i], call.weight_sums[i], call.out_channels, call.codes[i].size(1),
                 call.window, op);
  }
  checked_floats(call.bias, gated ? 2 * call.out_channels : call.out_channels, "the bias", op);
  if (call.shift.has_value()) {
    const Tensor& shift = *call.shift;
    TORCH_CHECK(shift.scalar_type() == at::kFloat && shift.dim() == 2 && shift.size(1) == sizes[1] &&
                    (shift.size(0) == sizes[0] || shift.size(0) == 1),
                op, ": the shift must be float32 (N or 1, ", sizes[1], "), not ", shift.sizes());
  }
  if (call.residual.has_value()) {
    check_float(*call.residual, "the residual", op);
    TORCH_CHECK(call.residual->sizes() == IntArrayRef(sizes), op, ": the residual ", call.residual->sizes(),
                " is not like the result ", IntArrayRef(sizes));
    TORCH_CHECK(!gated, op, ": geglu adds no residual");
  }
  return sizes;
}

// Which way convolutions of 3x3 are computed; the results are the same.
enum class Algorithm { cheapest, direct, winograd };
std::atomic<Algorithm> algorithm{Algorithm::cheapest};

void set_convolution_algorithm(c10::string_view name) {
  if (name == "cheapest") return algorithm.store(Algorithm::cheapest);
  if (name == "direct") return algorithm.store(Algorithm::direct);
  if (name == "winograd") return algorithm.store(Algorithm::winograd);
  TORCH_CHECK(false, "set_convolution_algorithm: cheapest, direct or winograd, not ", name);
}

bool by_winograd(const qdiff::Conv& p) {
  const Algorithm chosen = algorithm.load(std::memory_order_relaxed);
  if (chosen == Algorithm::direct || p.kernel_h != 3 || p.kernel_w != 3 || p.stride_h != 1 || p.stride_w != 1 ||
      p.dilation_h != 1 || p.dilation_w != 1) {
    return false;
  }
  return chosen == Algorithm::winograd || kKernels.winograd->pays(p, at::get_num_threads());
}

void run_winograd(const qdiff::Conv& p, int64_t work) {
  const qdiff::Winograd& winograd = *kKernels.winograd;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), qdiff::TaskPool::kMaxThreads);
  const int64_t shared = winograd.shared_bytes(p, threads), each = winograd.thread_bytes(p, threads);
  const Tensor scratch = qdiff::pooled({shared + threads * each}, at::kByte);
  uint8_t* memory = scratch.mutable_data_ptr<uint8_t>();
  const int64_t runs = winograd.runs(p, threads);
  for (int64_t run = 0; run < runs; ++run) {
    parallel(winograd.input_tasks(p, run, threads), work, false,
             [&](qdiff::Tasks& tasks) { winograd.transform_input(p, run, memory, threads, tasks); });
    parallel(winograd.tasks(p, threads), work, true, [&](qdiff::Tasks& tasks) {
      winograd.multiply(p, run, memory, memory + shared + tasks.thread * each, threads, tasks);
    });
  }
}

Tensor run_conv(const ConvCall& call) {
  const auto sizes = check_call(call);
  const Window& window = call.window;
  const size_t count = call.codes.size();
  Tensor out = channels_last(sizes, call.out_dtype);
  if (out.numel() == 0) return out;

  std::vector<SourceMemory> memory(count);
  std::vector<qdiff::ConvSource> sources;
  for (size_t i = 0; i < count; ++i) {
    sources.push_back(source_of(call.codes[i], call.scales[i], call.zero_points[i], call.weights[i], call.weight_scales[i],
                                call.weight_sums[i], window, sizes, memory[i]));
  }
  qdiff::Conv p{};
  p.sources = sources.data(), p.source_count = int64_t(count);
  p.batch = sizes[0], p.out_channels = sizes[1], p.out_h = sizes[2], p.out_w = sizes[3];
  p.kernel_h = window.kernel[0], p.kernel_w = window.kernel[1];
  p.stride_h = window.stride[0], p.stride_w = window.stride[1];
  p.dilation_h = window.dilation[0], p.dilation_w = window.dilation[1];
  p.activation = call.activation;
  p.bias = call.bias.has_value() ? call.bias->const_data_ptr<float>() : nullptr;
  Tensor shift, added;
  if (call.shift.has_value()) {
    shift = call.shift->stride(1) == 1 ? *call.shift : call.shift->contiguous();
    p.shift = shift.const_data_ptr<float>();
    p.shift_stride = shift.size(0) == 1 ? 0 : shift.stride(0);
  }
  if (call.residual.has_value()) {
    added = with_even_pixels(*call.residual);
    p.residual = added.const_data_ptr(), p.residual_type = type_of(added.scalar_type());
    p.residual_stride = pixel_stride(added);
  }
  p.out = out.data_ptr(), p.out_type = type_of(call.out_dtype), p.out_stride = call.out_channels;
  p.quantizer = call.quantizer;
  double quads = 0;
  for (const auto& source : sources) quads += double(source.quads);
  // Dots are of four products each, some 64 a nanosecond.
  const double nanoseconds = double(out.numel()) * double(p.kernel_h * p.kernel_w) * quads / 64;
  const int64_t work = int64_t(std::min(nanoseconds, 1e15));
  if (by_winograd(p)) {
    run_winograd(p, work);
  } else {
    parallel(kKernels.conv_tasks(p), work, false, [&](qdiff::Tasks& each) { kKernels.conv(p, each); });
  }
  return out;
}

Tensor int_conv(TensorList codes, at::ArrayRef<double> scales, IntArrayRef zero_points, TensorList weights,
                TensorList weight_scales, TensorList weight_sums, int64_t out_channels, IntArrayRef kernel,
                IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, IntArrayRef enlarge,
                const OptionalTensor& bias, const OptionalTensor& shift, const OptionalTensor& residual,
                int64_t activation, at::ScalarType out_dtype, double out_scale, int64_t out_zero_point, int64_t out_low,
                int64_t out_high) {
  constexpr const char* op = "int_conv";
  const size_t count = codes.size();
  TORCH_CHECK(count > 0 && scales.size() == count && zero_points.size() == count && weights.size() == count &&
                  weight_scales.size() == count && weight_sums.size() == count,
              op, ": every source needs codes, scale, zero point, weight, weight scales and weight sums");
  const auto act = checked_activation(
      activation, {Activation::none, Activation::silu, Activation::gelu, Activation::gelu_tanh}, op);
  const auto quantizer = checked_quantizer(out_scale, out_zero_point, out_low, out_high, out_dtype, op);
  const Window window = window_of(kernel, stride, padding, dilation, enlarge, op);
  return run_conv({codes, scales, zero_points, weights, weight_scales, weight_sums, out_channels, window, bias, shift,
                   residual, act, out_dtype, quantizer, op});
}

// x (..., C), C at least 1, with unit stride in C and rows at one distance.
Tensor as_rows(const Tensor& x) {
  const Tensor flat = x.dim() == 1 ? x.unsqueeze(0) : x.reshape({x.numel() / x.size(-1), x.size(-1)});
  return flat.size(1) == 1 || flat.stride(1) == 1 ? flat : flat.contiguous();
}

Tensor int_linear(const Tensor& codes, double scale, int64_t zero_point, TensorList weights, TensorList weight_scales,
                  TensorList weight_sums, int64_t out_features, const OptionalTensor& bias,
                  const OptionalTensor& residual, int64_t activation, at::ScalarType out_dtype, double out_scale,
                  int64_t out_zero_point, int64_t out_low, int64_t out_high) {
  constexpr const char* op = "int_linear";
  check_plain(codes, op);
  TORCH_CHECK(codes.scalar_type() == at::kByte && codes.dim() >= 1 && codes.size(-1) > 0, op,
              ": codes must be uint8 (..., I), not ", codes.scalar_type(), " ", codes.sizes());
  check_within(out_features, 1, qdiff::kMostElements, "out_features", op);
  const auto act = checked_activation(
      activation, {Activation::none, Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::geglu}, op);
  const auto quantizer = checked_quantizer(out_scale, out_zero_point, out_low, out_high, out_dtype, op);
  const size_t count = act == Activation::geglu ? 2 : 1;
  TORCH_CHECK(weights.size() == count && weight_scales.size() == count && weight_sums.size() == count, op,
              ": takes one weight with its scales and sums, and of geglu two, not ", weights.size());
  std::vector<int64_t> sizes = codes.sizes().vec();
  sizes.back() = out_features;
  checked_elements(sizes, op);
  OptionalTensor added;
  if (residual.has_value()) {
    check_plain(residual, op);
    TORCH_CHECK(residual->sizes() == IntArrayRef(sizes), op, ": the residual ", residual->sizes(),
                " is not like the result ", IntArrayRef(sizes));
    added = as_rows(*residual).unsqueeze(-1).unsqueeze(-1);
  }
  const Tensor image = as_rows(codes).unsqueeze(-1).unsqueeze(-1);  // (rows, I, 1, 1)
  const Window window{{1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}, {1, 1}};
  const std::vector<Tensor> images(count, image);
  const std::vector<double> scales(count, scale);
  const std::vector<int64_t> zero_points(count, zero_point);
  const OptionalTensor shift;
  const Tensor out = run_conv({images, scales, zero_points, weights, weight_scales, weight_sums, out_features, window, bias,
                               shift, added, act, out_dtype, quantizer, op});
  return out.view({image.size(0), out_features}).view(sizes);
}

// -------------------------------------------------------------------------------------------- normalisation

qdiff::Norm norm_of(at::ScalarType type, const OptionalTensor& weight, const OptionalTensor& bias, int64_t channels,
                    double epsilon, Activation activation, at::ScalarType out_dtype, const qdiff::Quantizer& q,
                    const char* op) {
  check_epsilon(epsilon, op);
  qdiff::Norm p{};
  p.type = type_of(type);
  p.channels = channels;
  p.weight = checked_floats(weight, channels, "the weight", op);
  p.bias = checked_floats(bias, channels, "the bias", op);
  p.epsilon = epsilon;
  p.activation = activation;
  p.out_type = type_of(out_dtype);
  p.out_stride = channels;
  p.quantizer = q;
  return p;
}

// The shape of parts (N, C_i, ...) side by side.
std::vector<int64_t> checked_parts(TensorList parts, int64_t groups, const char* op) {
  std::vector<int64_t> sizes;
  for (const Tensor& part : parts) {
    check_float(part, "a part", op);
    TORCH_CHECK(part.dim() >= 2 && part.size(1) > 0, op, ": parts must be (N, C, ...), not ", part.sizes());
    if (sizes.empty()) sizes = part.sizes().vec(), sizes[1] = 0;
    std::vector<int64_t> others = part.sizes().vec();
    others[1] = sizes[1];
    TORCH_CHECK(others == sizes, op, ": parts ", parts[0].sizes(), " and ", part.sizes(), " differ in more than channels");
    sizes[1] += part.size(1);
  }
  TORCH_CHECK(groups > 0 && sizes[1] % groups == 0, op, ": ", sizes[1], " channels do not make ", groups, " groups");
  checked_elements(sizes, op);
  return sizes;
}

Tensor group_norm(TensorList parts, int64_t groups, const OptionalTensor& weight, const OptionalTensor& bias,
                  double epsilon, int64_t activation, at::ScalarType out_dtype, double scale, int64_t zero_point,
                  int64_t low, int64_t high) {
  constexpr const char* op = "group_norm_act";
  TORCH_CHECK(!parts.empty() && parts.size() <= size_t(qdiff::kMaxParts), op, ": expected 1 to ", qdiff::kMaxParts,
              " parts, got ", parts.size());
  check_plain(parts, op), check_plain(weight, op), check_plain(bias, op);
  const std::vector<int64_t> sizes = checked_parts(parts, groups, op);
  const auto act = checked_activation(activation, {Activation::none, Activation::silu}, op);
  const auto q = checked_quantizer(scale, zero_point, low, high, out_dtype, op);
  const bool one_type = std::all_of(parts.begin(), parts.end(), [&](const Tensor& part) {
    return part.scalar_type() == parts[0].scalar_type();
  });
  const auto type = one_type ? parts[0].scalar_type() : at::kFloat;
  qdiff::Norm p = norm_of(type, weight, bias, sizes[1], epsilon, act, out_dtype, q, op);
  Tensor out = channels_last(sizes, out_dtype);
  if (out.numel() == 0) return out;
  std::vector<Tensor> even;
  for (const Tensor& part : parts) even.push_back(with_even_pixels(part.to(type)));
  p.part_count = int64_t(parts.size());
  for (size_t i = 0; i < even.size(); ++i) {
    p.parts[i] = even[i].const_data_ptr();
    p.part_channels[i] = even[i].size(1);
    p.part_stride[i] = pixel_stride(even[i]);
  }
  p.batch = sizes[0], p.pixels = pixels_of(parts[0]), p.groups = groups;
  p.out = out.data_ptr();
  const int64_t splits = kKernels.norm_splits(p, at::get_num_threads());
  parallel(p.batch * splits, out.numel() / 4, true,
           [&](qdiff::Tasks& each) { kKernels.group_norm(p, splits, each); });
  return out;
}

Tensor layer_norm(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double epsilon,
                  at::ScalarType out_dtype, double scale, int64_t zero_point, int64_t low, int64_t high) {
  constexpr const char* op = "layer_norm_act";
  check_plain(x, op), check_plain(weight, op), check_plain(bias, op);
  check_float(x, "its input", op);
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) > 0, op, ": expected (..., C), not ", x.sizes());
  const auto q = checked_quantizer(scale, zero_point, low, high, out_dtype, op);
  qdiff::Norm p = norm_of(x.scalar_type(), weight, bias, x.size(-1), epsilon, Activation::none, out_dtype, q, op);
  Tensor out = qdiff::pooled(x.sizes(), out_dtype);
  if (out.numel() == 0) return out;
  const Tensor rows = as_rows(x);
  p.parts[0] = rows.const_data_ptr(), p.part_channels[0] = p.channels, p.part_stride[0] = rows.stride(0), p.part_count = 1;
  p.out = out.data_ptr();
  parallel(rows.size(0), out.numel() / 4, false, [&](qdiff::Tasks& each) { kKernels.layer_norm(p, each); });
  return out;
}

// Elementwise, so any tensor without holes is one long row, and the result lies in memory as x does.
Tensor act_quantize_dense(const Tensor& x, qdiff::Pointwise p, at::ScalarType out_dtype) {
  const Tensor dense = x.is_non_overlapping_and_dense() ? x : x.contiguous();
  Tensor out = qdiff::pooled(dense.sizes(), dense.strides(), out_dtype);
  constexpr int64_t kRow = 1024;
  p.in = dense.const_data_ptr(), p.out = out.data_ptr();
  p.channels = p.in_stride = p.out_stride = kRow, p.rows = x.numel() / kRow;
  parallel(p.rows, p.rows * kRow / 4, false, [&](qdiff::Tasks& each) { kKernels.pointwise(p, each); });
  if (x.numel() % kRow) {
    p.in = static_cast<const char*>(p.in) + p.rows * kRow * x.element_size();
    p.out = static_cast<char*>(p.out) + p.rows * kRow * out.element_size();
    p.channels = x.numel() % kRow;
    p.rows = 1;
    parallel(1, 1, false, [&](qdiff::Tasks& each) { kKernels.pointwise(p, each); });
  }
  return out;
}

Tensor act_quantize_any(const Tensor& x, qdiff::Pointwise p, at::ScalarType out_dtype) {
  p.type = type_of(x.scalar_type()), p.out_type = type_of(out_dtype);
  if (p.activation != Activation::geglu) return act_quantize_dense(x, p, out_dtype);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() /= 2;
  Tensor out = qdiff::pooled(sizes, out_dtype);
  if (out.numel() == 0) return out;
  const Tensor rows = as_rows(x);
  p.rows = rows.size(0), p.channels = sizes.back(), p.in_stride = rows.stride(0), p.out_stride = p.channels;
  p.in = rows.const_data_ptr(), p.out = out.data_ptr();
  parallel(p.rows, out.numel() / 4, false, [&](qdiff::Tasks& each) { kKernels.pointwise(p, each); });
  return out;
}

Activation checked_pointwise(const Tensor& x, int64_t activation, const char* op) {
  check_plain(x, op);
  check_float(x, "its input", op);
  const auto act = checked_activation(
      activation, {Activation::none, Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::geglu}, op);
  TORCH_CHECK(act != Activation::geglu || (x.dim() >= 1 && x.size(-1) % 2 == 0), op, ": geglu expects (..., 2 C), not ",
              x.sizes());
  return act;
}

Tensor act_quantize(const Tensor& x, int64_t activation, at::ScalarType out_dtype, double scale, int64_t zero_point,
                    int64_t low, int64_t high) {
  constexpr const char* op = "act_quantize";
  qdiff::Pointwise p{};
  p.activation = checked_pointwise(x, activation, op);
  p.quantizer = checked_quantizer(scale, zero_point, low, high, out_dtype, op);
  return act_quantize_any(x, p, out_dtype);
}

Tensor act_quantize_rest(const Tensor& x, int64_t activation, double scale, int64_t zero_point, int64_t low, int64_t high,
                         double rest_scale, int64_t rest_zero_point) {
  constexpr const char* op = "act_quantize_rest";
  qdiff::Pointwise p{};
  p.activation = checked_pointwise(x, activation, op);
  p.quantizer = checked_quantizer(scale, zero_point, low, high, at::kByte, op);
  p.of_rest = true, p.rest = checked_quantizer(rest_scale, rest_zero_point, 0, 255, at::kByte, op);
  return act_quantize_any(x, p, at::kByte);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(qdiff, library) {
  library.def("set_convolution_algorithm(str name) -> ()", set_convolution_algorithm);
}

TORCH_LIBRARY_IMPL(qdiff, CPU, library) {
  library.impl("pack_weight", pack_weight);
  library.impl("int_conv", int_conv);
  library.impl("int_linear", int_linear);
  library.impl("group_norm_act", group_norm);
  library.impl("layer_norm_act", layer_norm);
  library.impl("act_quantize", act_quantize);
  library.impl("act_quantize_rest", act_quantize_rest);
}
