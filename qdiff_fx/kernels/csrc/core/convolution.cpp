#include "core/convolution.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/checks.h"
#include "core/parallel.h"

namespace qdiff {
namespace {

std::vector<int64_t> index_map(int64_t size, int64_t enlarged, int64_t pad_before, int64_t reach) {
  std::vector<int64_t> map(reach);
  for (int64_t i = 0; i < reach; ++i) {
    const int64_t at = i - pad_before;
    map[i] = at < 0 || at >= enlarged ? -1 : at * size / enlarged;
  }
  return map;
}

std::atomic<Algorithm> algorithm{Algorithm::cheapest};

bool by_winograd(const Kernels& kernels, const Conv& p) {
  const Algorithm chosen = algorithm.load(std::memory_order_relaxed);
  if (chosen == Algorithm::direct || p.depthwise || p.kernel_h != 3 || p.kernel_w != 3 || p.stride_h != 1 || p.stride_w != 1 ||
      p.dilation_h != 1 || p.dilation_w != 1) {
    return false;
  }
  return chosen == Algorithm::winograd || kernels.winograd->pays(p, threads.count());
}

void run_winograd(const Winograd& winograd, const Conv& p, int64_t work) {
  const int64_t count = std::min<int64_t>(threads.count(), TaskPool::kMaxThreads), each = winograd.thread_bytes(p, count);
  const Bytes shared(size_t(winograd.shared_bytes(p, count))), scratch(size_t(count * each));
  parallel(winograd.weight_tasks(p, count), work, true, [&](Tasks& tasks) { winograd.make_weights(p, shared.data(), tasks); });
  parallel(winograd.tasks(p, count), work, true,
           [&](Tasks& tasks) { winograd.multiply(p, shared.data(), scratch.data() + tasks.thread * each, count, tasks); });
}

// In nanoseconds: dots are of four products each, some 64 a nanosecond; lone products are as slow as four.
int64_t work_of(const Conv& p) {
  double quads = p.depthwise ? 4 : 0;
  for (int64_t i = 0; !p.depthwise && i < p.source_count; ++i) quads += double(p.sources[i].quads);
  const double results = double(p.batch) * double(p.out_h) * double(p.out_w) * double(p.out_channels);
  return int64_t(std::min(results * double(p.kernel_h * p.kernel_w) * quads / 64, 1e15));
}

}  // namespace

Window checked_window(const Sizes& kernel, const Sizes& stride, const Sizes& pad, const Sizes& dilation, const Sizes& enlarge,
                      const char* op) {
  QDIFF_CHECK(kernel.size() == 2 && stride.size() == 2 && pad.size() == 4 && dilation.size() == 2 && enlarge.size() == 2,
              op, ": kernel, stride, dilation and enlarge need two numbers, padding four");
  Window w{};
  for (int i = 0; i < 2; ++i) {
    w.kernel[i] = kernel[i], w.stride[i] = stride[i], w.dilation[i] = dilation[i], w.enlarge[i] = enlarge[i];
    check_within(kernel[i], 1, kMaxTaps, "kernel", op);
    check_within(stride[i], 1, kMostExtent, "stride", op);
    check_within(dilation[i], 1, kMostExtent, "dilation", op);
    check_within(enlarge[i], 1, kMostEnlarge, "enlarge", op);
  }
  for (int i = 0; i < 4; ++i) {
    w.pad[i] = pad[i];
    check_within(pad[i], -kMostExtent, kMostExtent, "padding", op);
  }
  QDIFF_CHECK(kernel[0] * kernel[1] <= kMaxTaps, op, ": kernels of more than ", kMaxTaps, " taps are not supported");
  return w;
}

std::array<int64_t, 4> checked_output(const Sizes& image, int64_t channels, const Window& w, int64_t out_channels,
                                      const char* op) {
  int64_t padded[2], out[2];
  for (int dim = 0; dim < 2; ++dim) {
    // No factor exceeds 2^34.
    padded[dim] = image[2 + dim] * w.enlarge[dim] + w.pad[2 * dim] + w.pad[2 * dim + 1];
    check_within(padded[dim], 0, kMostExtent, "the height and width of the padded, enlarged image", op);
    const int64_t room = padded[dim] - (w.dilation[dim] * (w.kernel[dim] - 1) + 1);
    QDIFF_CHECK(room >= 0, op, ": the kernel is larger than the padded input ", image);
    out[dim] = room / w.stride[dim] + 1;
  }
  checked_elements({image[0], channels, padded[0], padded[1]}, op);
  const std::array<int64_t, 4> sizes = {image[0], out_channels, out[0], out[1]};
  checked_elements(sizes, op);
  return sizes;
}

ConvSource conv_source(int32_t code_offset, const Image& image, const PackedWeight& weight, const Window& w, const Sizes& out,
                       SourceMemory& memory) {
  const int64_t quads = ceil_div(image.channels, 4), channels = packed_channels(out[1]);
  memory.outside = Bytes(size_t(quads * 4));
  std::memset(memory.outside.data(), int(image.zero_point), size_t(quads * 4));
  memory.start = Bytes(size_t(channels) * sizeof(int32_t));
  int32_t* start = memory.start.data<int32_t>();
  for (int64_t c = 0; c < channels; ++c) start[c] = (code_offset - int32_t(image.zero_point)) * weight.sums[c];
  memory.rows = index_map(image.height, image.height * w.enlarge[0], w.pad[0], w.reach(out[2], 0));
  memory.cols = index_map(image.width, image.width * w.enlarge[1], w.pad[2], w.reach(out[3], 1));
  ConvSource s{};
  s.codes = image.codes;
  s.stride_n = image.stride_n, s.stride_h = image.stride_h, s.stride_w = image.stride_w;
  s.row_map = memory.rows.data(), s.col_map = memory.cols.data();
  s.outside = memory.outside.data();
  s.quads = quads;
  s.weight = weight.codes;
  s.nibbles = weight.nibbles;
  s.weight_scale = weight.scale;
  s.start = start;
  s.sums = weight.sums, s.zero_point = int32_t(image.zero_point);
  s.scale = float(image.scale);
  return s;
}

void set_convolution_algorithm(Algorithm chosen) { algorithm.store(chosen); }

void run_conv(const Kernels& kernels, const Conv& p) {
  const int64_t work = work_of(p);
  if (by_winograd(kernels, p)) return run_winograd(*kernels.winograd, p, work);
  parallel(kernels.conv_tasks(p), work, false, [&](Tasks& each) { kernels.conv(p, each); });
}

}  // namespace qdiff
