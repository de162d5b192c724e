// Normalisation, activation and quantization in two passes over memory, one for layer norm.
#pragma once

#include <algorithm>
#include <cmath>

#include "vec.h"

namespace qdiff {
namespace {

constexpr int64_t kChunkPixels = 64;  // few enough that float sums over them lose nothing

int64_t norm_chunks(const Norm& p) { return ceil_div(p.pixels, kChunkPixels); }

// Calls with each stretch of up to 16 channels of each part: (part, channel within it, channel overall, count).
template <typename Visit>
QDIFF_INLINE void each_vector(const Norm& p, const Visit& visit) {
  int64_t before = 0;
  for (int64_t part = 0; part < p.part_count; ++part) {
    const int64_t channels = p.part_channels[part];
    for (int64_t c = 0; c < channels; c += kLanes) visit(part, c, before + c, std::min(kLanes, channels - c));
    before += channels;
  }
}

void norm_sums(const Norm& p, float* sums, int64_t begin, int64_t end) {
  const int64_t chunks = norm_chunks(p);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task / chunks * p.pixels + task % chunks * kChunkPixels;
    const int64_t count = std::min(kChunkPixels, p.pixels - task % chunks * kChunkPixels);
    float* to = sums + task * 2 * p.channels;
    each_vector(p, [&](int64_t part, int64_t c, int64_t channel, int64_t lanes) {
      const Reader reader{p.parts[part], p.type};
      Floats sum[4] = {}, squares[4] = {};
      int64_t i = 0;
      for (; i + 4 <= count; i += 4) {
        for (int64_t j = 0; j < 4; ++j) {
          const Floats x = reader.read((first + i + j) * p.part_stride[part] + c, lanes);
          sum[j] += x;
          squares[j] = multiply_add(x, x, squares[j]);
        }
      }
      for (; i < count; ++i) {
        const Floats x = reader.read((first + i) * p.part_stride[part] + c, lanes);
        sum[0] += x;
        squares[0] += x * x;
      }
      store_some(to + channel, (sum[0] + sum[1]) + (sum[2] + sum[3]), lanes);
      store_some(to + p.channels + channel, (squares[0] + squares[1]) + (squares[2] + squares[3]), lanes);
    });
  }
}

void norm_factors(const Norm& p, const float* sums, float* factors) {
  const int64_t chunks = norm_chunks(p), per_group = p.channels / p.groups;
  for (int64_t n = 0; n < p.batch; ++n) {
    float* scale = factors + n * 2 * p.channels;
    float* offset = scale + p.channels;
    for (int64_t g = 0; g < p.groups; ++g) {
      double sum = 0, squares = 0;
      for (int64_t i = 0; i < chunks; ++i) {
        const float* from = sums + (n * chunks + i) * 2 * p.channels + g * per_group;
        for (int64_t c = 0; c < per_group; ++c) sum += from[c], squares += from[p.channels + c];
      }
      const double count = double(per_group) * double(p.pixels), mean = sum / count;
      const double variance = std::max(0.0, squares / count - mean * mean);
      const double inverse = 1.0 / std::sqrt(variance + p.epsilon);
      for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
        const double weight = p.weight ? p.weight[c] : 1.0;
        scale[c] = float(weight * inverse);
        offset[c] = float((p.bias ? p.bias[c] : 0.0) - mean * weight * inverse);
      }
    }
  }
}

template <Activation A>
QDIFF_INLINE void apply_chunk(const Norm& p, const Writer& writer, const float* scale, const float* offset, int64_t first,
                              int64_t count) {
  each_vector(p, [&](int64_t part, int64_t c, int64_t channel, int64_t lanes) {
    const Reader reader{p.parts[part], p.type};
    const Floats a = load_some(scale + channel, lanes), b = load_some(offset + channel, lanes);
    for (int64_t i = first; i < first + count; ++i) {
      const Floats x = reader.read(i * p.part_stride[part] + c, lanes);
      writer.write(i * p.out_stride + channel, activate<A>(multiply_add(x, a, b)), lanes);
    }
  });
}

void norm_apply(const Norm& p, const float* factors, int64_t begin, int64_t end) {
  const Writer writer(p.out, p.out_type, p.quantizer);
  const int64_t chunks = norm_chunks(p);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / chunks, first = image * p.pixels + task % chunks * kChunkPixels;
    const int64_t count = std::min(kChunkPixels, p.pixels - task % chunks * kChunkPixels);
    const float* scale = factors + image * 2 * p.channels;
    const float* offset = scale + p.channels;
    if (p.activation == Activation::silu) {
      apply_chunk<Activation::silu>(p, writer, scale, offset, first, count);
    } else {
      apply_chunk<Activation::none>(p, writer, scale, offset, first, count);
    }
  }
}

QDIFF_INLINE float total(const Floats& x) {
  double sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += x[i];
  return float(sum);
}

// A task is one pixel; its channels stay in L1 between the passes.
void layer_norm(const Norm& p, int64_t begin, int64_t end) {
  const Writer writer(p.out, p.out_type, p.quantizer);
  const Reader reader{p.parts[0], p.type};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * p.part_stride[0];
    Floats sum{};
    for (int64_t c = 0; c < p.channels; c += kLanes) sum += reader.read(at + c, p.channels - c);
    const float mean = total(sum) / float(p.channels);
    Floats squares{};
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      const Ints lane = Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} < int32_t(std::min(kLanes, p.channels - c));
      const Floats centred = select(lane, reader.read(at + c, p.channels - c) - mean, Floats{});
      squares += centred * centred;
    }
    const float inverse = float(1.0 / std::sqrt(double(total(squares)) / double(p.channels) + p.epsilon));
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      const int64_t count = std::min(kLanes, p.channels - c);
      Floats y = (reader.read(at + c, count) - mean) * inverse;
      if (p.weight) y *= load_some(p.weight + c, count);
      if (p.bias) y += load_some(p.bias + c, count);
      writer.write(row * p.out_stride + c, y, count);
    }
  }
}

}  // namespace
}  // namespace qdiff
