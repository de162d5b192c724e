// Normalisation, activation and quantization in two passes, the second over what the first left in cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>

#include "core/activations.h"

namespace qdiff {
namespace {

constexpr int64_t kChunkPixels = 64;  // few enough that float sums over them lose nothing

// Channels from `begin` to `end` of an image: whole groups.
struct Range {
  int64_t image, begin, end;

  int64_t channels() const { return end - begin; }
};

// Calls with each stretch of up to 16 channels of each part in the range: (part, channel within it, channel within the
// range, count).
template <typename Visit>
QDIFF_INLINE void each_vector(const Norm& p, const Range& range, const Visit& visit) {
  int64_t before = 0;
  for (int64_t part = 0; part < p.part_count; before += p.part_channels[part++]) {
    const int64_t from = std::max<int64_t>(0, range.begin - before);
    const int64_t to = std::min(p.part_channels[part], range.end - before);
    if (from >= to) continue;
    each_stretch(to - from, [&](int64_t c, auto count) { visit(part, from + c, before + from + c - range.begin, count); });
  }
}

// Pixels of the chunk after this one, of as many channels as one line of memory holds, into the second cache: read channels by
// channels, an image that no cache holds comes in no order that the processor would foresee.
struct NextChunk {
  static constexpr int64_t kLine = 64, kStaysInL2 = int64_t{1} << 20;
  const char* from;  // null where these channels begin within a line that others have asked for, and where images are small
  int64_t stride;    // bytes

  NextChunk(const void* data, int64_t pixels, int64_t first, int64_t pixel_stride, int64_t channel, int64_t size)
      : from(nullptr), stride(pixel_stride * size) {
    if (channel * size % kLine || pixels * stride <= kStaysInL2) return;
    from = static_cast<const char*>(data) + (first + kChunkPixels) * stride + channel * size;
  }

  // Of some pixels, counted from the first of the chunk.
  QDIFF_INLINE void fetch(int64_t first, int64_t count) const {
    if (!from) return;
    for (int64_t i = 0; i < count; ++i) __builtin_prefetch(from + (first + i) * stride, 0, 2);
  }
};

// Of the first `count` pixels from `first`: their sum and that of their squares.
template <typename Source, typename Count>
QDIFF_INLINE void sum_pixels(const Source& in, const NextChunk& next, int64_t at, int64_t stride, int64_t pixels, Count lanes,
                             Floats& all, Floats& all_squares) {
  Floats sum[4] = {}, squares[4] = {};
  int64_t i = 0;
  for (; i + 4 <= pixels; i += 4) {
    next.fetch(i, 4);
    for (int64_t j = 0; j < 4; ++j) {
      const Floats x = in.read(at + (i + j) * stride, lanes);
      sum[j] += x;
      squares[j] = multiply_add(x, x, squares[j]);
    }
  }
  for (; i < pixels; ++i) {
    const Floats x = in.read(at + i * stride, lanes);
    sum[0] += x;
    squares[0] = multiply_add(x, x, squares[0]);
  }
  all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  all_squares = (squares[0] + squares[1]) + (squares[2] + squares[3]);
}

// sums: [2][channels] of the values and of their squares, over all pixels.
template <typename Source>
void norm_sums(const Norm& p, const Range& range, double* sums) {
  std::fill(sums, sums + 2 * range.channels(), 0.0);
  for (int64_t chunk = 0; chunk < p.pixels; chunk += kChunkPixels) {
    const int64_t first = range.image * p.pixels + chunk, count = std::min(kChunkPixels, p.pixels - chunk);
    each_vector(p, range, [&](int64_t part, int64_t c, int64_t channel, auto lanes) {
      const Source in{p.parts[part], p.type};
      const NextChunk next(p.parts[part], p.pixels, first, p.part_stride[part], c, bytes_of(p.type));
      Floats all, squares;
      sum_pixels(in, next, first * p.part_stride[part] + c, p.part_stride[part], count, lanes, all, squares);
      alignas(64) float each[2][kLanes];
      store(each[0], all), store(each[1], squares);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        sums[channel + lane] += each[0][lane];
        sums[range.channels() + channel + lane] += each[1][lane];
      }
    });
  }
}

// factors: [2][channels]: y = x * factors[0] + factors[1].
void norm_factors(const Norm& p, const Range& range, const double* sums, float* factors) {
  const int64_t per_group = p.channels / p.groups, channels = range.channels();
  for (int64_t group = 0; group < channels; group += per_group) {
    double sum = 0, squares = 0;
    for (int64_t c = group; c < group + per_group; ++c) sum += sums[c], squares += sums[channels + c];
    const double count = double(per_group) * double(p.pixels), mean = sum / count;
    const double variance = std::max(0.0, squares / count - mean * mean);
    const double inverse = 1.0 / std::sqrt(variance + p.epsilon);
    for (int64_t c = group; c < group + per_group; ++c) {
      const double weight = (p.weight ? p.weight[range.begin + c] : 1.0) * inverse;
      factors[c] = float(weight);
      factors[channels + c] = float((p.bias ? p.bias[range.begin + c] : 0.0) - mean * weight);
    }
  }
}

template <Activation A, typename Source, typename Element>
void norm_apply(const Norm& p, const Range& range, const float* factors, const Output<Element>& out) {
  for (int64_t chunk = 0; chunk < p.pixels; chunk += kChunkPixels) {
    const int64_t first = range.image * p.pixels + chunk, last = first + std::min(kChunkPixels, p.pixels - chunk);
    each_vector(p, range, [&](int64_t part, int64_t c, int64_t channel, auto lanes) {
      const Source in{p.parts[part], p.type};
      const Floats a = load_some(factors + channel, lanes), b = load_some(factors + range.channels() + channel, lanes);
      const int64_t stride = p.part_stride[part], to = range.begin + channel;
      const auto value = [&](int64_t pixel) { return multiply_add(in.read(pixel * stride + c, lanes), a, b); };
      const NextChunk next(p.parts[part], p.pixels, first, stride, c, bytes_of(p.type));
      const NextChunk results(p.out, p.pixels, first, p.out_stride, to, sizeof(Element));
      int64_t i = first;
      for (; i + kGroup <= last; i += kGroup) {
        next.fetch(i - first, kGroup);
        results.fetch(i - first, kGroup);
        const Group<kGroup> y = activate<A>(each<kGroup>([&](int j) { return value(i + j); }));
        for (int j = 0; j < kGroup; ++j) out.write((i + j) * p.out_stride + to, y.at[j], lanes);
      }
      for (; i < last; ++i) out.write(i * p.out_stride + to, activate<A>(Group<1>{{value(i)}}).at[0], lanes);
    });
  }
}

// Into how many runs of groups an image is cut: all threads should have work, and a run a cache line's worth of channels.
int64_t norm_splits(const Norm& p, int64_t threads) {
  constexpr int64_t kLeastChannels = 32;
  int64_t splits = 1;
  while (p.batch * splits % threads != 0 && p.groups % (2 * splits) == 0 &&
         p.channels / (2 * splits) >= kLeastChannels) {
    splits *= 2;
  }
  return splits;
}

template <typename Source>
void norm_range(const Norm& p, const Range& range, double* sums, float* factors) {
  norm_sums<Source>(p, range, sums);
  norm_factors(p, range, sums, factors);
  with_output(p.out, p.out_type, p.quantizer, [&](const auto& out) {
    p.activation == Activation::silu ? norm_apply<Activation::silu, Source>(p, range, factors, out)
                                     : norm_apply<Activation::none, Source>(p, range, factors, out);
  });
}

// A task is one run of groups of one image, taken one at a time; between the passes its values stay in cache where they
// can.
void group_norm(const Norm& p, int64_t splits, Tasks& tasks) {
  int64_t task, end;
  if (!tasks.take(task, end)) return;
  const int64_t channels = p.channels / splits;
  double* sums = static_cast<double*>(std::malloc(size_t(2 * channels) * (sizeof(double) + sizeof(float))));
  if (!sums) throw std::bad_alloc();
  float* factors = reinterpret_cast<float*>(sums + 2 * channels);
  do {
    const Range range{task / splits, task % splits * channels, (task % splits + 1) * channels};
    p.type == Type::f16 ? norm_range<HalfInput>(p, range, sums, factors) : norm_range<Input>(p, range, sums, factors);
  } while (tasks.take(task, end));
  std::free(sums);
}

// Pairwise, which rounds least.
QDIFF_INLINE float total(const Floats& x) {
  alignas(64) float lanes[kLanes];
  store(lanes, x);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// Of the first `count` lanes of x; the others count as zero.
QDIFF_INLINE Floats squared(const Floats& x, int64_t count) {
  if (count >= kLanes) return x * x;
  const Ints lane = lane_numbers() < int32_t(count);
  return select(lane, x * x, Floats{});
}

constexpr int kRowsAtOnce = 4;

// Rows stay in L1 between the passes. R of them at once: each sum is a chain of additions that wait for one another.
template <int R, typename Source, typename Element>
void layer_norm_rows(const Norm& p, int64_t row, const Source& in, const Output<Element>& out) {
  const auto read = [&](int r, int64_t c, auto count) { return in.read((row + r) * p.part_stride[0] + c, count); };
  Floats sum[R] = {}, squares[R] = {};
  float mean[R], inverse[R];
  each_stretch(p.channels, [&](int64_t c, auto count) {
    for (int r = 0; r < R; ++r) sum[r] += read(r, c, count);
  });
  for (int r = 0; r < R; ++r) mean[r] = total(sum[r]) / float(p.channels);
  each_stretch(p.channels, [&](int64_t c, auto count) {
    for (int r = 0; r < R; ++r) squares[r] += squared(read(r, c, count) - mean[r], count);
  });
  for (int r = 0; r < R; ++r) {
    inverse[r] = float(1.0 / std::sqrt(double(total(squares[r])) / double(p.channels) + p.epsilon));
  }
  each_stretch(p.channels, [&](int64_t c, auto count) {
    const Floats weight = p.weight ? load_some(p.weight + c, count) : splat(1.0f);
    const Floats bias = p.bias ? load_some(p.bias + c, count) : Floats{};
    for (int r = 0; r < R; ++r) {
      const Floats y = (read(r, c, count) - mean[r]) * inverse[r] * weight + bias;
      out.write((row + r) * p.out_stride + c, y, count);
    }
  });
}

template <typename Source>
void layer_norm(const Norm& p, Tasks& tasks) {
  int64_t begin, end;
  const Source in{p.parts[0], p.type};
  with_output(p.out, p.out_type, p.quantizer, [&](const auto& out) {
    while (tasks.take(begin, end)) {
      for (; begin + kRowsAtOnce <= end; begin += kRowsAtOnce) layer_norm_rows<kRowsAtOnce>(p, begin, in, out);
      for (; begin < end; ++begin) layer_norm_rows<1>(p, begin, in, out);
    }
  });
}

void layer_norm(const Norm& p, Tasks& tasks) {
  p.type == Type::f16 ? layer_norm<HalfInput>(p, tasks) : layer_norm<Input>(p, tasks);
}

}  // namespace
}  // namespace qdiff
