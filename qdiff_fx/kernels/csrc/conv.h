// The convolution around the dot-product tile. An instruction set defines `dot_tile` and includes this.
#pragma once

#include <algorithm>
#include <cstdlib>

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
  alignas(64) float sum[kTileRows * kBlockChannels];   // of the sources before the last
  alignas(64) float gate[kTileRows * kBlockChannels];  // what gated activations multiply by
};

// Part of an output: `rows` pixels from `first`, `channels` channels from `channel`.
struct Place {
  int64_t first, rows, block, channel, channels;

  int64_t vectors() const { return ceil_div(channels, kLanes); }
};

// The weights of one block of output channels, source after source. 4-bit codes are unpacked into memory of the thread,
// once for all the rows it multiplies with them.
class Weights {
 public:
  explicit Weights(const Conv& p) : p_(p) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < p.source_count; ++i) bytes += p.sources[i].nibbles ? panel_bytes(i, kBlockVectors) : 0;
    memory_ = bytes ? static_cast<int8_t*>(std::aligned_alloc(64, size_t(bytes))) : nullptr;
  }
  ~Weights() { std::free(memory_); }
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  void choose(const Place& at) {
    if (at.block == block_) return;
    block_ = at.block;
    int8_t* to = memory_;
    for (int64_t i = 0; i < p_.source_count; ++i) {
      if (!p_.sources[i].nibbles) continue;
      unpack(stored(i), panel_bytes(i, at.vectors()) / 2, to);
      to += panel_bytes(i, kBlockVectors);
    }
  }

  const int8_t* of(int64_t source) const {
    if (!p_.sources[source].nibbles) return stored(source);
    const int8_t* from = memory_;
    for (int64_t i = 0; i < source; ++i) from += p_.sources[i].nibbles ? panel_bytes(i, kBlockVectors) : 0;
    return from;
  }

 private:
  int64_t panel_bytes(int64_t source, int64_t vectors) const {
    return p_.kernel_h * p_.kernel_w * p_.sources[source].quads * vectors * kLanes * 4;
  }

  const int8_t* stored(int64_t source) const {
    const ConvSource& s = p_.sources[source];
    return s.weight + block_ * panel_bytes(source, kBlockVectors) / (s.nibbles ? 2 : 1);
  }

  static void unpack(const int8_t* from, int64_t half, int8_t* to) {
    for (int64_t i = 0; i < half; ++i) {
      to[i] = int8_t(((from[i] & 15) ^ 8) - 8);
      to[half + i] = int8_t((((from[i] >> 4) & 15) ^ 8) - 8);
    }
  }

  const Conv& p_;
  int8_t* memory_;
  int64_t block_ = -1;
};

void dot_source(const Conv& p, int64_t source, const Weights& weights, const Place& at, Rows* places, Tile& tile) {
  const ConvSource& s = p.sources[source];
  find_rows(p, s, at.first, at.rows, places);
  dot_tile(places, p.kernel_h * p.kernel_w, s.quads, weights.of(source), at.rows, at.vectors(), s.start + at.channel,
           tile.acc);
}

// sum (+)= acc * scale of each channel.
QDIFF_INLINE void add_to(float* sum, bool first_source, const Tile& t, const ConvSource& s, const Place& at) {
  for (int64_t v = 0; v < at.vectors(); ++v) {
    const Floats scale = load(s.weight_scale + at.channel + v * kLanes) * s.scale;
    for (int64_t r = 0; r < at.rows; ++r) {
      const int64_t index = r * kBlockChannels + v * kLanes;
      const Floats value = __builtin_convertvector(load_raw<Ints>(t.acc + index), Floats) * scale;
      store(sum + index, first_source ? value : value + load(sum + index));
    }
  }
}

// The last source is still in `acc`, sources before it in `sum`.
template <Activation A>
QDIFF_INLINE void finish(const Conv& p, const ConvSource& last, bool more, const Tile& t, const Place& at) {
  const Writer writer(p.out, p.out_type, p.quantizer);
  const Reader residual{p.residual, p.residual_type};
  const float* shift[kTileRows] = {};
  if (p.shift) {
    for (int64_t r = 0; r < at.rows; ++r) shift[r] = p.shift + (at.first + r) / (p.out_h * p.out_w) * p.shift_stride;
  }
  for (int64_t v = 0; v < at.channels; v += kLanes) {
    const int64_t count = std::min(kLanes, at.channels - v), c = at.channel + v;
    const Floats scale = load(last.weight_scale + c) * last.scale;
    const Floats bias = p.bias ? load_some(p.bias + c, count) : Floats{};
    Floats gate_bias{};
    if constexpr (A == Activation::geglu) gate_bias = p.bias ? load_some(p.bias + p.out_channels + c, count) : Floats{};
    for (int64_t r = 0; r < at.rows; ++r) {
      const int64_t index = r * kBlockChannels + v, pixel = at.first + r;
      Floats x = multiply_add(__builtin_convertvector(load_raw<Ints>(t.acc + index), Floats), scale, bias);
      if (more) x += load(t.sum + index);
      if (p.shift) x += load_some(shift[r] + c, count);
      if (p.residual) x += residual.read(pixel * p.residual_stride + c, count);
      if constexpr (A == Activation::geglu) {
        x *= gelu(load(t.gate + index) + gate_bias);
      } else {
        x = activate<A>(x);
      }
      writer.write(pixel * p.out_stride + c, x, count);
    }
  }
}

void conv_tile(const Conv& p, const Weights& weights, const Place& at, Rows* places, Tile& tile) {
  const bool gated = p.activation == Activation::geglu;
  const int64_t values = gated ? p.source_count / 2 : p.source_count;
  for (int64_t i = values; i < p.source_count; ++i) {
    dot_source(p, i, weights, at, places, tile);
    add_to(tile.gate, i == values, tile, p.sources[i], at);
  }
  for (int64_t i = 0; i + 1 < values; ++i) {
    dot_source(p, i, weights, at, places, tile);
    add_to(tile.sum, i == 0, tile, p.sources[i], at);
  }
  const ConvSource& last = p.sources[values - 1];
  dot_source(p, values - 1, weights, at, places, tile);
  switch (p.activation) {
    case Activation::silu: return finish<Activation::silu>(p, last, values > 1, tile, at);
    case Activation::gelu: return finish<Activation::gelu>(p, last, values > 1, tile, at);
    case Activation::gelu_tanh: return finish<Activation::gelu_tanh>(p, last, values > 1, tile, at);
    case Activation::geglu: return finish<Activation::geglu>(p, last, values > 1, tile, at);
    default: return finish<Activation::none>(p, last, values > 1, tile, at);
  }
}

void conv(const Conv& p, int64_t begin, int64_t end) {
  const int64_t chunks = row_chunks(p), pixels = pixel_count(p);
  alignas(64) const uint8_t* places[kMaxTaps][kTileRows];
  Tile tile;
  Weights weights(p);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task / chunks, from = task % chunks * kTileRows * kTilesPerTask;
    const int64_t to = std::min(pixels, from + kTileRows * kTilesPerTask), channel = block * kBlockChannels;
    const int64_t channels = std::min(kBlockChannels, p.out_channels - channel);
    for (int64_t first = from; first < to; first += kTileRows) {
      const Place at{first, std::min(kTileRows, to - first), block, channel, channels};
      weights.choose(at);
      conv_tile(p, weights, at, places, tile);
    }
  }
}

}  // namespace
}  // namespace qdiff
