// The convolution around the dot-product tile. An instruction set defines `dot_tile` and includes this.
#pragma once

#include <algorithm>

#include "vec.h"

#ifndef QDIFF_CODE_OFFSET
#define QDIFF_CODE_OFFSET 0
#endif

namespace qdiff {
namespace {

constexpr int32_t kCodeOffset = QDIFF_CODE_OFFSET;  // see Kernels::code_offset
constexpr int64_t kTileRows = 6;      // pixels: 6 x 4 accumulators + 4 operands + 1 broadcast fit in 32 registers
constexpr int64_t kTilesPerTask = 8;  // packed weights stay in L2 over all of them
constexpr int64_t kMaxTaps = 1024;    // kernel_h * kernel_w

// acc[row][64] = start + sum over taps and quads of rows[tap][row] * weight; `vectors` of 16 channels are computed.
using Rows = const uint8_t* [kTileRows];
void dot_tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t row_count,
              int64_t vectors, const int32_t* start, int32_t* acc);

int64_t pixel_count(const Conv& p) { return p.batch * p.out_h * p.out_w; }
int64_t row_chunks(const Conv& p) { return ceil_div(pixel_count(p), kTileRows * kTilesPerTask); }

int64_t conv_tasks(const Conv& p) { return ceil_div(p.out_channels, kBlockChannels) * row_chunks(p); }

// Where each tap of each of the `count` output pixels from `first` reads.
QDIFF_INLINE void find_rows(const Conv& p, const ConvSource& s, int64_t first, int64_t count, Rows* rows) {
  int64_t x = first % p.out_w, y = first / p.out_w % p.out_h, n = first / (p.out_w * p.out_h);
  for (int64_t r = 0; r < count; ++r) {
    const uint8_t* image = s.codes + n * s.stride_n;
    Rows* tap = rows;
    for (int64_t i = 0; i < p.kernel_h; ++i) {
      const int64_t row = s.row_map[y * p.stride_h + i * p.dilation_h];
      const uint8_t* line = image + row * s.stride_h;
      for (int64_t j = 0; j < p.kernel_w; ++j, ++tap) {
        const int64_t col = s.col_map[x * p.stride_w + j * p.dilation_w];
        (*tap)[r] = (row | col) < 0 ? s.outside : line + col * s.stride_w;
      }
    }
    if (++x == p.out_w) {
      x = 0;
      if (++y == p.out_h) y = 0, ++n;
    }
  }
}

struct Tile {
  alignas(64) int32_t acc[kTileRows * kBlockChannels];
  alignas(64) float sum[kTileRows * kBlockChannels];
};

// sum (+)= acc * scale of each channel.
template <bool First>
QDIFF_INLINE void dequantize(Tile& t, const ConvSource& s, int64_t channel, int64_t rows, int64_t vectors) {
  for (int64_t v = 0; v < vectors; ++v) {
    const Floats scale = load(s.weight_scale + channel + v * kLanes) * s.scale;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = r * kBlockChannels + v * kLanes;
      const Floats value = __builtin_convertvector(load_raw<Ints>(t.acc + at), Floats) * scale;
      store(t.sum + at, First ? value : value + load(t.sum + at));
    }
  }
}

template <Activation A>
QDIFF_INLINE void finish(const Conv& p, const Tile& t, int64_t first, int64_t rows, int64_t channel, int64_t channels) {
  const Writer writer(p.out, p.out_type, p.quantizer);
  const Reader residual{p.residual, p.residual_type};
  const int64_t image = p.out_h * p.out_w;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t pixel = first + r;
    for (int64_t v = 0; v < channels; v += kLanes) {
      const int64_t count = std::min(kLanes, channels - v), c = channel + v;
      Floats x = load(t.sum + r * kBlockChannels + v);
      if (p.bias) x += load_some(p.bias + c, count);
      if (p.shift) x += load_some(p.shift + pixel / image * p.shift_stride + c, count);
      if (p.residual) x += residual.read(pixel * p.residual_stride + c, count);
      writer.write(pixel * p.out_stride + c, activate<A>(x), count);
    }
  }
}

void conv_tile(const Conv& p, int64_t first, int64_t rows, int64_t block, Rows* places, Tile& tile) {
  const int64_t channel = block * kBlockChannels;
  const int64_t channels = std::min(kBlockChannels, p.out_channels - channel);
  const int64_t vectors = ceil_div(channels, kLanes), taps = p.kernel_h * p.kernel_w;
  for (int64_t i = 0; i < p.source_count; ++i) {
    const ConvSource& s = p.sources[i];
    find_rows(p, s, first, rows, places);
    const int8_t* weight = s.weight + block * kBlockChannels * taps * s.quads * 4;
    dot_tile(places, taps, s.quads, weight, rows, vectors, s.start + channel, tile.acc);
    i == 0 ? dequantize<true>(tile, s, channel, rows, vectors) : dequantize<false>(tile, s, channel, rows, vectors);
  }
  switch (p.activation) {
    case Activation::silu: return finish<Activation::silu>(p, tile, first, rows, channel, channels);
    case Activation::gelu: return finish<Activation::gelu>(p, tile, first, rows, channel, channels);
    case Activation::gelu_tanh: return finish<Activation::gelu_tanh>(p, tile, first, rows, channel, channels);
    default: return finish<Activation::none>(p, tile, first, rows, channel, channels);
  }
}

void conv(const Conv& p, int64_t begin, int64_t end) {
  const int64_t chunks = row_chunks(p), pixels = pixel_count(p);
  alignas(64) const uint8_t* places[kMaxTaps][kTileRows];
  Tile tile;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task / chunks, from = task % chunks * kTileRows * kTilesPerTask;
    const int64_t to = std::min(pixels, from + kTileRows * kTilesPerTask);
    for (int64_t first = from; first < to; first += kTileRows) {
      conv_tile(p, first, std::min(kTileRows, to - first), block, places, tile);
    }
  }
}

}  // namespace
}  // namespace qdiff
