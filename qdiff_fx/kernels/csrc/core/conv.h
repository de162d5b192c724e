// The convolution around the dot-product tile. An instruction set defines `dot_tile` and includes this.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>

#include "core/activations.h"

#ifndef QDIFF_CODE_OFFSET
#define QDIFF_CODE_OFFSET 0
#endif
#ifndef QDIFF_READS_NIBBLES
#define QDIFF_READS_NIBBLES 0
#endif

namespace qdiff {
namespace {

constexpr int32_t kCodeOffset = QDIFF_CODE_OFFSET;  // see Kernels::code_offset
constexpr int64_t kTileRows = 6;      // pixels: 6 x 4 accumulators + 4 operands + 1 broadcast fit in 32 registers
constexpr int64_t kTilesPerTask = 8;  // packed weights stay in L2 over all of them

using Rows = const uint8_t* [kTileRows];

int64_t pixel_count(const Conv& p) { return p.batch * p.out_h * p.out_w; }
int64_t row_chunks(const Conv& p) { return ceil_div(pixel_count(p), kTileRows * kTilesPerTask); }

int64_t blocks_of(const Conv& p) { return ceil_div(p.out_channels, kBlockChannels); }

// Bytes of the weights, where each has one, of `vectors` vectors of output channels.
int64_t panel_bytes(const Conv& p, int64_t source, int64_t vectors) {
  return p.kernel_h * p.kernel_w * p.sources[source].quads * vectors * kVectorBytes;
}

// Whether the tile reads the 4-bit codes of a source as they are stored: where it can, sums of code * 255 fit, and so few
// pixels are multiplied with them that it would not pay to unpack them first.
bool stay_nibbles(const Conv& p, int64_t source) {
  constexpr int64_t kMostCodes = (int64_t{1} << 27) / (255 * 8), kFewTiles = 12;
  const ConvSource& s = p.sources[source];
  return QDIFF_READS_NIBBLES && s.nibbles && p.kernel_h * p.kernel_w * s.quads * 4 <= kMostCodes &&
         pixel_count(p) <= kFewTiles * kTileRows;
}

// Weights that stay in L2 as a whole are met by one tile of pixels after the other; of larger ones, one block of output
// channels at a time stays there while all pixels pass.
bool pixels_first(const Conv& p) {
  constexpr int64_t kStaysInL2 = 512 * 1024, kEnoughTasks = 16;
  int64_t bytes = 0;
  for (int64_t i = 0; i < p.source_count; ++i) {
    bytes += panel_bytes(p, i, blocks_of(p) * kBlockVectors) / (stay_nibbles(p, i) ? 2 : 1);
  }
  return bytes <= kStaysInL2 && row_chunks(p) >= kEnoughTasks;
}

int64_t conv_tasks(const Conv& p) { return row_chunks(p) * (p.depthwise || pixels_first(p) ? 1 : blocks_of(p)); }

// Whether `count` output pixels side by side read source pixels that are as far apart as the stride says, by every column of
// the kernel: no padding and no repetition in between. From one place to the next a map moves on by one at most, so its
// ends tell.
QDIFF_INLINE bool reads_evenly(const Conv& p, const ConvSource& s, int64_t x, int64_t count) {
  const int64_t steps = (count - 1) * p.stride_w;
  for (int64_t j = 0; j < p.kernel_w; ++j) {
    const int64_t* col = s.col_map + x * p.stride_w + j * p.dilation_w;
    if (col[0] < 0 || col[steps] - col[0] != steps) return false;
  }
  return true;
}

// Where each tap of `count` pixels side by side reads, when they do so evenly.
QDIFF_INLINE void find_even_rows(const Conv& p, const ConvSource& s, const uint8_t* image, int64_t y, int64_t x, Rows* tap) {
  const int64_t step = p.stride_w * s.stride_w;
  for (int64_t i = 0; i < p.kernel_h; ++i) {
    const int64_t row = s.row_map[y * p.stride_h + i * p.dilation_h];
    for (int64_t j = 0; j < p.kernel_w; ++j, ++tap) {
      const int64_t col = s.col_map[x * p.stride_w + j * p.dilation_w];
      const uint8_t* from = row < 0 ? s.outside : image + row * s.stride_h + col * s.stride_w;
      const int64_t apart = row < 0 ? 0 : step;
      for (int64_t r = 0; r < kTileRows; ++r) (*tap)[r] = from + r * apart;
    }
  }
}

// Where each tap of each of the `count` output pixels from `at` reads.
QDIFF_INLINE void find_rows(const Conv& p, const ConvSource& s, Position at, int64_t count, Rows* rows) {
  if (at.x + count <= p.out_w && reads_evenly(p, s, at.x, count)) {
    return find_even_rows(p, s, s.codes + at.n * s.stride_n, at.y, at.x, rows);
  }
  for (int64_t r = 0; r < count; ++r, at.advance(1, p.out_w, p.out_h)) {
    const uint8_t* image = s.codes + at.n * s.stride_n;
    Rows* tap = rows;
    for (int64_t i = 0; i < p.kernel_h; ++i) {
      const int64_t row = s.row_map[at.y * p.stride_h + i * p.dilation_h];
      const uint8_t* line = image + row * s.stride_h;
      for (int64_t j = 0; j < p.kernel_w; ++j, ++tap) {
        const int64_t col = s.col_map[at.x * p.stride_w + j * p.dilation_w];
        (*tap)[r] = (row | col) < 0 ? s.outside : line + col * s.stride_w;
      }
    }
  }
}

constexpr int64_t kMostRows = 16;  // pixels that are finished at once

struct Tile {
  alignas(64) int32_t acc[kMostRows * kBlockChannels];
  alignas(64) float sum[kMostRows * kBlockChannels];   // of the sources before the last
  alignas(64) float gate[kMostRows * kBlockChannels];  // what gated activations multiply by
};

// Part of an output: `rows` pixels from `first`, of which `across` lie side by side and the next ones `down` pixels on;
// `channels` channels from `channel`.
struct Place {
  int64_t first, rows, across, down, block, channel, channels;

  int64_t vectors() const { return ceil_div(channels, kLanes); }
};

// The numbers of its pixels.
struct Pixels {
  int64_t at[kMostRows];

  explicit Pixels(const Place& place) {
    int64_t line = place.first;
    for (int64_t r = 0; r < place.rows; r += place.across, line += place.down) {
      for (int64_t i = 0; i < place.across; ++i) at[r + i] = line + i;
    }
  }
};

// Memory of a thread for weights in another form than they are stored in, of one block of output channels or of all.
// `Form::bytes(p, source)` says how much of it a block of a source takes, a whole number of lines; none where it is read as
// it is stored.
template <typename Form>
class WeightMemory {
 public:
  WeightMemory(const Conv& p, bool all_blocks) : p_(p), all_blocks_(all_blocks) {
    const int64_t bytes = first_byte(p.source_count);
    memory_ = bytes ? static_cast<int8_t*>(std::aligned_alloc(64, size_t(bytes))) : nullptr;
    if (bytes && !memory_) throw std::bad_alloc();
  }
  ~WeightMemory() { std::free(memory_); }
  WeightMemory(const WeightMemory&) = delete;
  WeightMemory& operator=(const WeightMemory&) = delete;

  // Calls with each block that is to be made now that `block` is next: (block). At first with all, where all are kept.
  template <typename Make>
  void choose(int64_t block, const Make& make) {
    if (!memory_ || block == block_ || (all_blocks_ && block_ >= 0)) return;
    block_ = block;
    if (!all_blocks_) return make(block);
    for (int64_t each = 0; each < blocks_of(p_); ++each) make(each);
  }

  int8_t* of(int64_t source, int64_t block) const {
    return memory_ + first_byte(source) + (all_blocks_ ? block : 0) * Form::bytes(p_, source);
  }

 private:
  int64_t first_byte(int64_t source) const {
    int64_t bytes = 0;
    for (int64_t i = 0; i < source; ++i) bytes += (all_blocks_ ? blocks_of(p_) : 1) * Form::bytes(p_, i);
    return bytes;
  }

  const Conv& p_;
  const bool all_blocks_;
  int8_t* memory_;
  int64_t block_ = -1;
};

// Where the weights of a block are stored.
QDIFF_INLINE const int8_t* stored_weights(const Conv& p, int64_t source, int64_t block) {
  const ConvSource& s = p.sources[source];
  return s.weight + p.kernel_h * p.kernel_w * s.quads * quad_bytes(block * kBlockChannels, s.nibbles);
}

QDIFF_INLINE int64_t vectors_of_block(const Conv& p, int64_t block) {
  return ceil_div(std::min(kBlockChannels, p.out_channels - block * kBlockChannels), kLanes);
}

}  // namespace
}  // namespace qdiff

// `Weights`, which multiplies with them.
#if defined(QDIFF_WEIGHTS)
#include QDIFF_WEIGHTS
#else
#include "core/weights.h"
#endif

namespace qdiff {
namespace {

// Where the pixels of a tile are read, source after source.
struct Places {
  const uint8_t* rows[kMaxTaps][kTileRows];
  bool kept;  // there is room for those of every source

  explicit Places(const Conv& p) : kept(p.source_count * p.kernel_h * p.kernel_w <= kMaxTaps) {}
  Rows* of(const Conv& p, int64_t source) { return rows + (kept ? source * p.kernel_h * p.kernel_w : 0); }
};

void find_places(const Conv& p, const Position& at, int64_t rows, Places& places) {
  for (int64_t i = 0; places.kept && i < p.source_count; ++i) find_rows(p, p.sources[i], at, rows, places.of(p, i));
}

void dot_source(const Conv& p, int64_t source, const Weights& weights, const Place& at, Places& places, Tile& tile) {
  const ConvSource& s = p.sources[source];
  Rows* rows = places.of(p, source);
  if (!places.kept) find_rows(p, s, Position(at.first, p.out_w, p.out_h), at.rows, rows);
  weights.dot(source, at.block, rows, at.rows, s.start + at.channel, tile.acc);
}

// sum (+)= acc * scale of each channel.
QDIFF_INLINE void add_to(float* sum, bool first_source, const Tile& t, const ConvSource& s, const Place& at) {
  for (int64_t v = 0; v < at.vectors(); ++v) {
    const Floats scale = load(s.weight_scale + at.channel + v * kLanes) * s.scale;
    for (int64_t r = 0; r < at.rows; ++r) {
      const int64_t index = r * kBlockChannels + v * kLanes;
      const Floats value = to_floats(load_raw<Ints>(t.acc + index)) * scale;
      store(sum + index, first_source ? value : value + load(sum + index));
    }
  }
}

// What one stretch of channels adds to its sums.
struct Stretch {
  const Conv& p;
  const Tile& tile;
  const Pixels& pixels;
  const float* const* shift;  // of each pixel
  Floats scale, bias, gate_bias;
  int64_t lane, channel;
  bool more;  // sources before the last are in `sum`, the last is in `acc`
};

// N pixels from the r-th: as many side by side, since what is done to each is a chain of operations that wait for one another.
template <Activation A, int N, typename Element, typename Count>
QDIFF_INLINE void finish_pixels(const Stretch& s, int64_t r, Count count, const Output<Element>& out) {
  const Conv& p = s.p;
  const Input residual{p.residual, p.residual_type};
  const int64_t index = r * kBlockChannels + s.lane, c = s.channel;
  const int64_t* pixel = s.pixels.at + r;
  const auto acc = [&](int i) { return to_floats(load_raw<Ints>(s.tile.acc + index + i * kBlockChannels)); };
  Group<N> x = each<N>([&](int i) { return multiply_add(acc(i), s.scale, s.bias); });
  if (s.more) x = each<N>([&](int i) { return x.at[i] + load(s.tile.sum + index + i * kBlockChannels); });
  if (p.shift) x = each<N>([&](int i) { return x.at[i] + load_some(s.shift[r + i] + c, count); });
  if (p.residual) x = each<N>([&](int i) { return x.at[i] + residual.read(pixel[i] * p.residual_stride + c, count); });
  if constexpr (A == Activation::geglu) {
    x = x * gelu(each<N>([&](int i) { return load(s.tile.gate + index + i * kBlockChannels) + s.gate_bias; }));
  } else {
    x = activate<A>(x);
  }
  for (int i = 0; i < N; ++i) out.write(pixel[i] * p.out_stride + c, x.at[i], count);
}

template <Activation A, typename Element, typename Count>
QDIFF_INLINE void finish_stretch(const Stretch& s, int64_t rows, Count count, const Output<Element>& out) {
  int64_t r = 0;
  if constexpr (kGroup > 1 && !std::is_same_v<Count, int64_t>) {
    for (; r + kGroup <= rows; r += kGroup) finish_pixels<A, kGroup>(s, r, count, out);
  }
  for (; r < rows; ++r) finish_pixels<A, 1>(s, r, count, out);
}

template <Activation A, typename Element>
void finish(const Conv& p, const ConvSource& last, bool more, const Tile& t, const Place& at, const Output<Element>& out) {
  const Pixels pixels(at);
  const float* shift[kMostRows] = {};
  if (p.shift) {
    const int64_t of_image = p.out_h * p.out_w;
    int64_t image = divide(at.first, of_image).quotient;
    for (int64_t r = 0; r < at.rows; ++r) {
      while (pixels.at[r] >= (image + 1) * of_image) ++image;
      shift[r] = p.shift + image * p.shift_stride;
    }
  }
  each_stretch(at.channels, [&](int64_t v, auto count) {
    const int64_t c = at.channel + v;
    const Floats bias = p.bias ? load_some(p.bias + c, count) : Floats{};
    Floats gate_bias{};
    if constexpr (A == Activation::geglu) gate_bias = p.bias ? load_some(p.bias + p.out_channels + c, count) : Floats{};
    const Stretch stretch{p, t, pixels, shift, load(last.weight_scale + c) * last.scale, bias, gate_bias, v, c, more};
    finish_stretch<A>(stretch, at.rows, count, out);
  });
}

template <Activation A>
QDIFF_INLINE void finish(const Conv& p, const ConvSource& last, bool more, const Tile& t, const Place& at) {
  with_output(p.out, p.out_type, p.quantizer, [&](const auto& out) { finish<A>(p, last, more, t, at, out); });
}

void finish_tile(const Conv& p, const ConvSource& last, bool more, const Tile& t, const Place& at) {
  switch (p.activation) {
    case Activation::silu: return finish<Activation::silu>(p, last, more, t, at);
    case Activation::gelu: return finish<Activation::gelu>(p, last, more, t, at);
    case Activation::gelu_tanh: return finish<Activation::gelu_tanh>(p, last, more, t, at);
    case Activation::geglu: return finish<Activation::geglu>(p, last, more, t, at);
    case Activation::relu: return finish<Activation::relu>(p, last, more, t, at);
    default: return finish<Activation::none>(p, last, more, t, at);
  }
}

// Lines of memory that the end of a tile reads and writes arrive while its products are summed: the stretches are too
// short for the processor to see them coming.
QDIFF_INLINE void fetch_ahead(const Conv& p, const Place& at) {
  constexpr int64_t kLine = 64;
  const int64_t out_size = bytes_of(p.out_type), residual_size = bytes_of(p.residual_type);
  const Pixels pixels(at);
  for (int64_t r = 0; r < at.rows; ++r) {
    const int64_t pixel = pixels.at[r];
    const char* out = static_cast<const char*>(p.out) + (pixel * p.out_stride + at.channel) * out_size;
    for (int64_t byte = 0; byte < at.channels * out_size; byte += kLine) __builtin_prefetch(out + byte, 1);
    if (!p.residual) continue;
    const char* from = static_cast<const char*>(p.residual) + (pixel * p.residual_stride + at.channel) * residual_size;
    for (int64_t byte = 0; byte < at.channels * residual_size; byte += kLine) __builtin_prefetch(from + byte, 0);
  }
}

void conv_tile(const Conv& p, const Weights& weights, const Place& at, Places& places, Tile& tile) {
  fetch_ahead(p, at);
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
  finish_tile(p, last, values > 1, tile, at);
}

Place place_of(const Conv& p, int64_t first, int64_t last, int64_t block) {
  const int64_t channel = block * kBlockChannels, rows = std::min(kTileRows, last - first);
  return {first, rows, rows, 0, block, channel, std::min(kBlockChannels, p.out_channels - channel)};
}

}  // namespace
}  // namespace qdiff

#include "core/depthwise.h"

namespace qdiff {
namespace {

void conv_task(const Conv& p, int64_t task, bool all_blocks, Weights& weights, Places& places, Tile& tile) {
  const int64_t chunks = row_chunks(p), from = task % chunks * kTileRows * kTilesPerTask;
  const int64_t to = std::min(pixel_count(p), from + kTileRows * kTilesPerTask);
  const int64_t first_block = all_blocks ? 0 : task / chunks;
  const int64_t last_block = all_blocks ? blocks_of(p) : first_block + 1;
  weights.choose(first_block);
  Position at(from, p.out_w, p.out_h);
  for (int64_t first = from; first < to; first += kTileRows, at.advance(kTileRows, p.out_w, p.out_h)) {
    find_places(p, at, std::min(kTileRows, to - first), places);
    for (int64_t block = first_block; block < last_block; ++block) {
      conv_tile(p, weights, place_of(p, first, to, block), places, tile);
    }
  }
}

void conv(const Conv& p, Tasks& tasks) {
  if (p.depthwise) return depthwise(p, tasks);
  const bool all_blocks = pixels_first(p);
  int64_t begin, end;
  if (!tasks.take(begin, end)) return;
  Places places(p);
  Tile tile;
  Weights weights(p, all_blocks);
  do {
    for (int64_t task = begin; task < end; ++task) conv_task(p, task, all_blocks, weights, places, tile);
  } while (tasks.take(begin, end));
}

}  // namespace
}  // namespace qdiff
