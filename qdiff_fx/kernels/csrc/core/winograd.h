// 3x3 convolutions of stride 1 with a quarter of the multiplications, to the same integer: Winograd's F(4x4, 3x3) modulo 2^32.
//
// Y = A' [(G g G') . (B' d B)] A over tiles of 4x4 results (Lavin and Gray, "Fast Algorithms for Convolutional Neural
// Networks", arXiv 1509.09308, for the points 0, 1, -1, 2, -2 and infinity). Made exact:
// - Codes less 128 keep B' d B within 16 bits, and so do weights of 8 bits G g G' once the fractions of G are left out.
// - The 36 products of int16 matrices are summed in 32 bits, which may wrap: everything is arithmetic modulo 2^32.
// - What was left out of G is made up for in the output transform, whose result is 576 times the sum, modulo 2^32. Times the
//   inverse of 9, and shifted right by 6 places, it is the sum itself, as long as that lies within [-2^25, 2^25). Where the
//   weights would allow more, the input channels are cut into parts, each with an output transform of its own.
//
// An instruction set includes this after conv.h and defines `multiply_pairs` and `kRates`.
#pragma once

#include <array>
#include <map>
#include <optional>

#include "core/conv.h"

namespace qdiff {
namespace {

// As many 16-bit numbers, and 32-bit ones, as are one register.
#if defined(__AVX512BW__)
constexpr int64_t kRegister = 64;
#elif defined(__AVX2__)
constexpr int64_t kRegister = 32;
#else
constexpr int64_t kRegister = 16;
#endif
typedef int16_t Shorts __attribute__((vector_size(kRegister)));
typedef uint16_t Halfwords __attribute__((vector_size(kRegister)));
typedef int32_t Wides __attribute__((vector_size(kRegister)));
typedef uint32_t Unsigneds __attribute__((vector_size(kRegister)));

constexpr int64_t kPatch = 6, kOutputs = 4, kPositions = kPatch * kPatch;
constexpr int64_t kGroupQuads = kRegister / 4;
// What is multiplied together stays in L2: of so many tiles, input channels / 4 and the output channels of one packed block
// the transformed inputs, the transformed weights and the products.
constexpr int64_t kChunkTiles = kRegister == 64 ? 48 : 24;
constexpr int64_t kBlockQuads = 16;
constexpr int64_t kPanel = kBlockChannels;
constexpr int64_t kWinogradRows = 6;  // tiles multiplied at once
constexpr int64_t kKeptWeights = int64_t{3} << 19;    // bytes of transformed weights that stay in L2 from chunk to chunk
constexpr int64_t kSharedInputs = int64_t{32} << 20;  // bytes of transformed inputs that there are at a time
constexpr int64_t kReach = int64_t{1} << 25;

// What an instruction set takes for each step: multiply-adds per cycle of the direct convolution and of the products, cycles
// per transformed weight, input and result (the latter beyond what the direct convolution takes), and how many vectors of sums
// have to be under way for a multiply-add not to wait for another.
struct Rates {
  double direct, direct_nibbles, product, weight, input, output, sums_in_flight;
};

// m[row][kPanel] (+)= sum over pairs of a[row][pair] * b[pair][kPanel], both of two int16; `rows` is at most kWinogradRows, and
// of the panel `vectors` of 16 channels are computed. A line of memory from `ahead` on is fetched for each pair: what is read
// next lies too scattered for the processor to guess.
void multiply_pairs(const int16_t* a, int64_t a_stride, int64_t rows, const int16_t* b, int64_t pairs, int64_t vectors, int32_t* m,
                    bool add, const char* ahead);
extern const Rates kRates;

// ------------------------------------------------------------------------------------------------- transforms

// The first three, and the last three: so many intermediate results at a time are as many as there are registers.
template <bool Last, typename V>
QDIFF_INLINE void half_input_transform(const V (&d)[kPatch], V* out) {
  const V even = d[4] - d[2];
  if constexpr (Last) {
    const V odd = d[3] - d[1];
    out[0] = even + (odd << 1);
    out[1] = even - (odd << 1);
    out[2] = d[5] - d[3] - (odd << 2);
  } else {
    const V far_even = d[4] - (d[2] << 2), far_odd = d[3] - (d[1] << 2);
    out[0] = ((d[0] - d[2]) << 2) + even;
    out[1] = far_even + far_odd;
    out[2] = far_even - far_odd;
  }
}

template <typename V>
QDIFF_INLINE void input_transform(const V (&d)[kPatch], V (&out)[kPatch]) {
  half_input_transform<false>(d, out);
  half_input_transform<true>(d, out + kPatch / 2);
}

// G without its fractions 1/4, -1/6, -1/6, 1/24, 1/24, 1.
template <typename V>
QDIFF_INLINE void weight_transform(const V& a, const V& b, const V& c, V (&out)[kPatch]) {
  const V ends = a + c, far = a + (c << 2), twice = b << 1;
  out[0] = a;
  out[1] = ends + b;
  out[2] = ends - b;
  out[3] = far + twice;
  out[4] = far - twice;
  out[5] = c;
}

// 24 times what G's fractions would have made of it.
template <typename V>
QDIFF_INLINE void output_transform(const V (&m)[kPatch], V (&out)[kOutputs]) {
  const V near = m[1] + m[2], apart = m[1] - m[2], far = m[3] + m[4], far_apart = m[3] - m[4];
  out[0] = (m[0] << 1) + ((m[0] - near) << 2) + far;
  out[1] = (far_apart << 1) - (apart << 2);
  out[2] = (far - near) << 2;
  out[3] = (far_apart << 3) - (apart << 2) + (m[5] << 4) + (m[5] << 3);
}

// -------------------------------------------------------------------------------------------------- the plan

// The input channels of a source in parts of nearly the same size, whole groups each.
struct Blocks {
  int64_t quads, count, size;

  explicit Blocks(int64_t quads) : quads(quads) {
    const int64_t groups = ceil_div(quads, kGroupQuads), most = kBlockQuads / kGroupQuads;
    count = ceil_div(groups, most);
    size = ceil_div(groups, count) * kGroupQuads;
    count = ceil_div(quads, size);
  }

  int64_t quads_of(int64_t block) const { return std::min(size, quads - block * size); }
};

// Distances in memory, in elements. Those between positions are no multiples of a page: caches would hold none of them.
// A row that ends within a group of channels has room for the rest of it.
QDIFF_INLINE int64_t row_stride(int64_t quads) { return quads * 4 + (quads % kGroupQuads ? kRegister / 2 : 0); }
QDIFF_INLINE int64_t input_position(int64_t quads, int64_t tiles) { return tiles * row_stride(quads) + 32; }
QDIFF_INLINE int64_t weight_position(int64_t quads) { return quads * 4 * kPanel + 32; }
QDIFF_INLINE int64_t product_position(int64_t tiles) { return tiles * kPanel + 16; }

QDIFF_INLINE int64_t input_block_size(int64_t quads, int64_t tiles) {
  return kPositions * input_position(quads, tiles);
}

int64_t input_chunk_size(const Conv& p, int64_t tiles) {
  int64_t size = 0;
  for (int64_t i = 0; i < p.source_count; ++i) {
    const Blocks blocks(p.sources[i].quads);
    for (int64_t b = 0; b < blocks.count; ++b) size += input_block_size(blocks.quads_of(b), tiles);
  }
  return size;
}

// Of all parts, and of the largest.
struct WeightSizes {
  int64_t all = 0, largest = 0;

  explicit WeightSizes(const Conv& p) {
    for (int64_t i = 0; i < p.source_count; ++i) {
      const Blocks blocks(p.sources[i].quads);
      for (int64_t b = 0; b < blocks.count; ++b) {
        const int64_t size = kPositions * weight_position(blocks.quads_of(b));
        all += size;
        largest = std::max(largest, size);
      }
    }
  }
};

// How the work is cut. Where all transformed weights stay in L2, they are made first and shared, and a task is one chunk of
// tiles, whose inputs nobody else needs (`by_chunks`). Elsewhere the work is cut into runs of chunks; of a run first all inputs
// are transformed, then a task is one panel of output channels over one of `splits` parts of its chunks.
struct WinogradPlan {
  int64_t tile_rows, tile_cols, tiles;  // of 4x4 results, over the whole batch
  int64_t panels;
  WeightSizes sizes;                    // elements of the transformed weights of a panel
  bool by_chunks;
  int64_t chunk, chunks;                // tiles multiplied while their inputs stay in cache
  int64_t run, runs;                    // chunks
  int64_t splits;
  bool keeps_weights;                   // from chunk to chunk

  WinogradPlan(const Conv& p, int64_t threads) : sizes(p) {
    tile_rows = ceil_div(p.out_h, kOutputs), tile_cols = ceil_div(p.out_w, kOutputs);
    tiles = p.batch * tile_rows * tile_cols;
    panels = ceil_div(p.out_channels, kPanel);
    by_chunks = panels * sizes.all * 2 <= kKeptWeights / 2 && ceil_div(tiles, kChunkTiles) >= 2 * threads;
    // Every thread should have a task.
    chunks = std::max(ceil_div(tiles, kChunkTiles), std::min(ceil_div(threads, panels), ceil_div(tiles, kWinogradRows)));
    chunk = ceil_div(ceil_div(tiles, chunks), kWinogradRows) * kWinogradRows;
    chunks = ceil_div(tiles, chunk);
    const int64_t most = std::max<int64_t>(1, kSharedInputs / (input_chunk_size(p, chunk) * 2));
    runs = by_chunks ? 1 : ceil_div(chunks, most);
    run = ceil_div(chunks, runs);
    runs = ceil_div(chunks, run);
    splits = 1;
    while (panels * splits % threads != 0 && panels * splits < 8 * threads && 2 * splits <= run) splits *= 2;
    keeps_weights = run > splits && sizes.all * 2 <= kKeptWeights;
  }

  int64_t tasks() const { return by_chunks ? chunks : panels * splits; }
  int64_t tiles_of(int64_t at) const { return std::min(chunk, tiles - at * chunk); }
  int64_t first_chunk(int64_t of_run) const { return of_run * run; }
  int64_t last_chunk(int64_t of_run) const { return std::min(chunks, (of_run + 1) * run); }
  int64_t first_tile(int64_t of_run) const { return first_chunk(of_run) * chunk; }
  int64_t last_tile(int64_t of_run) const { return std::min(tiles, last_chunk(of_run) * chunk); }
  // Elements of what the threads share, and of what is made by and for one of them.
  int64_t shared(const Conv& p) const { return by_chunks ? panels * sizes.all : run * input_chunk_size(p, chunk); }
  int64_t own(const Conv& p) const {
    return by_chunks ? 2 * input_chunk_size(p, chunk) : keeps_weights ? sizes.all : 2 * sizes.largest;
  }
};

constexpr int64_t kTileSums = kOutputs * kOutputs * kPanel;

// Bytes of scratch memory, those of every thread, and those which all share.
int64_t winograd_thread_bytes(const Conv& p, int64_t threads) {
  const WinogradPlan plan(p, threads);
  return ceil_div(plan.own(p) * 2 + kPositions * product_position(plan.chunk) * 4 + 2 * plan.chunk * kTileSums * 4, 64) * 64;
}

int64_t winograd_shared_bytes(const Conv& p, int64_t threads) {
  return ceil_div(WinogradPlan(p, threads).shared(p) * 2, 64) * 64;
}

int64_t winograd_runs(const Conv& p, int64_t threads) { return WinogradPlan(p, threads).runs; }

// ---------------------------------------------------------------------------------------------------- inputs

// Where the 6x6 pixels that a tile reads are.
struct Patch {
  const uint8_t* pixels[kPatch][kPatch];

  Patch() = default;
  Patch(const Conv& p, const ConvSource& s, const WinogradPlan& plan, int64_t tile) {
    const int64_t x = tile % plan.tile_cols * kOutputs, y = tile / plan.tile_cols % plan.tile_rows * kOutputs;
    const uint8_t* image = s.codes + tile / (plan.tile_cols * plan.tile_rows) * s.stride_n;
    for (int64_t i = 0; i < kPatch; ++i) {
      // What lies beyond the last row or column is read for results that nobody keeps.
      const int64_t row = y + i < p.out_h + 2 ? s.row_map[y + i] : -1;
      for (int64_t j = 0; j < kPatch; ++j) {
        const int64_t col = x + j < p.out_w + 2 ? s.col_map[x + j] : -1;
        pixels[i][j] = (row | col) < 0 ? s.outside : image + row * s.stride_h + col * s.stride_w;
      }
    }
  }
};

// Codes of every second channel: those at even places of each group of four, or (`odd`) at odd ones. So neither codes nor
// weights, which are cut up alike, have to be moved from one lane to another.
QDIFF_INLINE Shorts codes_of(const uint8_t* from, bool odd) {
  const Halfwords both = load_raw<Halfwords>(from);
  return Shorts(odd ? both >> 8 : both & uint16_t(0xff));
}

template <bool Last, typename Read>
QDIFF_INLINE void transform_half_patch(const Read& read, int16_t* to, int64_t position) {
  // Of codes less 128 each: B' of a constant is -6 times it in the second place, and nothing elsewhere.
  constexpr int16_t kCentre = 128 * 36;
  constexpr int64_t kHalf = kPatch / 2;
  Shorts half[kHalf][kPatch];
  for (int64_t j = 0; j < kPatch; ++j) {
    const Shorts column[kPatch] = {read(0, j), read(1, j), read(2, j), read(3, j), read(4, j), read(5, j)};
    Shorts made[kHalf];
    half_input_transform<Last>(column, made);
    for (int64_t i = 0; i < kHalf; ++i) half[i][j] = made[i];
  }
  for (int64_t i = 0; i < kHalf; ++i) {
    Shorts made[kPatch];
    input_transform(half[i], made);
    if (!Last && i == 1) made[1] -= kCentre;
    for (int64_t j = 0; j < kPatch; ++j) store_raw(to + (i * kPatch + j) * position, made[j]);
  }
}

template <typename Read>
QDIFF_INLINE void transform_patch(const Read& read, int16_t* to, int64_t position) {
  transform_half_patch<false>(read, to, position);
  transform_half_patch<true>(read, to + kPositions / 2 * position, position);
}

// One tile, `quads` groups of four channels from `first`, into its row at every position.
void transform_input(const Patch& patch, int64_t first, int64_t quads, int16_t* to, int64_t position) {
  for (int64_t q = 0; q < quads; q += kGroupQuads, to += kRegister) {
    const int64_t count = std::min(kGroupQuads, quads - q), byte = (first + q) * 4;
    // Lines that are about to be written are asked for at once: they are too far apart for the processor to see them coming.
    for (int64_t at = 0; at < kPositions; ++at) {
      for (int64_t half = 0; half < kRegister; half += 32) __builtin_prefetch(to + at * position + half, 1);
    }
    if (count == kGroupQuads) {
      for (int odd = 0; odd < 2; ++odd) {
        const auto read = [&](int64_t i, int64_t j) { return codes_of(patch.pixels[i][j] + byte, odd); };
        transform_patch(read, to + odd * kRegister / 2, position);
      }
      continue;
    }
    alignas(64) uint8_t rest[kPatch][kPatch][kRegister] = {};
    for (int64_t i = 0; i < kPatch; ++i) {
      for (int64_t j = 0; j < kPatch; ++j) std::memcpy(rest[i][j], patch.pixels[i][j] + byte, size_t(count * 4));
    }
    for (int odd = 0; odd < 2; ++odd) {  // the second over what the first has written too much
      const auto read = [&](int64_t i, int64_t j) { return codes_of(rest[i][j], odd); };
      transform_patch(read, to + odd * count * 2, position);
    }
  }
}

// The inputs of a chunk, [source][block][position][tile][channel], which are made piece by piece: a piece is a block of a tile.
class ChunkInputs {
 public:
  ChunkInputs(const Conv& p, const WinogradPlan& plan, int64_t chunk, int16_t* to) : p_(p), plan_(plan), chunk_(chunk), to_(to) {
    for (int64_t i = 0; i < p.source_count; ++i) blocks_ += Blocks(p.sources[i].quads).count;
  }

  int64_t pieces() const { return plan_.tiles_of(chunk_) * blocks_; }

  void piece(int64_t number) {
    const int64_t tile = number / blocks_;
    if (number % blocks_ == 0) source_ = 0, block_ = 0, block_to_ = to_;
    const ConvSource& s = p_.sources[source_];
    if (block_ == 0) patch_ = Patch(p_, s, plan_, chunk_ * plan_.chunk + tile);
    const Blocks blocks(s.quads);
    const int64_t quads = blocks.quads_of(block_);
    transform_input(patch_, block_ * blocks.size, quads, block_to_ + tile * row_stride(quads), input_position(quads, plan_.chunk));
    block_to_ += input_block_size(quads, plan_.chunk);
    if (++block_ == blocks.count) block_ = 0, ++source_;
  }

  void tile(int64_t number) {
    for (int64_t b = 0; b < blocks_; ++b) piece(number * blocks_ + b);
  }

 private:
  const Conv& p_;
  const WinogradPlan& plan_;
  int64_t chunk_, blocks_ = 0;
  int16_t* to_;
  // Of the next piece.
  int64_t source_ = 0, block_ = 0;
  int16_t* block_to_ = nullptr;
  Patch patch_;
};

// --------------------------------------------------------------------------------------------------- weights

// The packed weights of a panel: [tap][quad][vectors][16][4], in nibbles or not.
struct PackedPanel {
  const int8_t* first;
  int64_t quad, tap;  // bytes from one to the next
  bool nibbles;

  PackedPanel(const Conv& p, int64_t source, int64_t panel)
      : first(stored_weights(p, source, panel)), nibbles(p.sources[source].nibbles) {
    const int64_t vectors = vectors_of_block(p, panel);
    quad = nibbles ? nibble_bytes(vectors) : vectors * kVectorBytes;
    tap = p.sources[source].quads * quad;
  }

  const int8_t* at(int64_t vector, int64_t quad_index) const {
    return first + quad_index * quad + (nibbles ? vector / 2 : vector) * kVectorBytes;
  }
};

// Shifts that leave, of 16-bit words of packed weights, those at even places or (Odd) at odd ones, as 16-bit numbers.
template <bool Nibbles, bool Upper, bool Odd>
QDIFF_INLINE Shorts unpacked(const int8_t* from) {
  constexpr int up = Nibbles ? (Odd ? 4 : 12) - (Upper ? 4 : 0) : (Odd ? 0 : 8);
  return (load_raw<Shorts>(from) << up) >> (Nibbles ? 12 : 8);
}

// The weights of a quad in a register's worth of output channels, one of every two, at every position.
template <bool Nibbles, bool Upper, bool Odd>
QDIFF_INLINE void transform_weight(const int8_t* from, int64_t tap, int16_t* to, int64_t position) {
  Shorts half[kPatch][3];
  for (int j = 0; j < 3; ++j) {
    Shorts made[kPatch];
    weight_transform(unpacked<Nibbles, Upper, Odd>(from + j * tap), unpacked<Nibbles, Upper, Odd>(from + (3 + j) * tap),
                     unpacked<Nibbles, Upper, Odd>(from + (6 + j) * tap), made);
    for (int64_t i = 0; i < kPatch; ++i) half[i][j] = made[i];
  }
  for (int64_t i = 0; i < kPatch; ++i) {
    Shorts made[kPatch];
    weight_transform(half[i][0], half[i][1], half[i][2], made);
    for (int64_t j = 0; j < kPatch; ++j) store_raw(to + (i * kPatch + j) * position, made[j]);
  }
}

template <bool Nibbles, bool Upper>
QDIFF_INLINE void transform_vector(const int8_t* from, int64_t tap, int16_t* even, int16_t* odd, int64_t position) {
  for (int64_t byte = 0; byte < kVectorBytes; byte += kRegister) {
    transform_weight<Nibbles, Upper, false>(from + byte, tap, even + byte / 2, position);
  }
  for (int64_t byte = 0; byte < kVectorBytes; byte += kRegister) {
    transform_weight<Nibbles, Upper, true>(from + byte, tap, odd + byte / 2, position);
  }
}

// Sums of two neighbouring bytes' magnitudes, of nine taps: they fit into 16 bits.
QDIFF_INLINE Shorts magnitudes_of(const int8_t* from, int64_t tap) {
  Shorts sum{};
  for (int t = 0; t < 9; ++t) {
#if defined(__AVX512BW__)
    const __m512i bytes = _mm512_abs_epi8(_mm512_loadu_si512(from + t * tap));
    sum += Shorts(_mm512_maddubs_epi16(bytes, _mm512_set1_epi8(1)));
#elif defined(__AVX2__)
    const __m256i bytes = _mm256_abs_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + t * tap)));
    sum += Shorts(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)));
#else
    const Shorts both = load_raw<Shorts>(from + t * tap), low = (both << 8) >> 8, high = both >> 8;
    sum += (low ^ (low >> 15)) - (low >> 15) + (high ^ (high >> 15)) - (high >> 15);
#endif
  }
  return sum;
}

// Sums of the magnitudes of weights, of every output channel of a panel; weights are whole bytes.
class Magnitudes {
 public:
  // Those of a quad in 16 output channels, all taps.
  QDIFF_INLINE void add(const int8_t* from, int64_t tap, int64_t vector) {
    for (int64_t part = 0; part < kParts; ++part) {
      const Wides two = Wides(magnitudes_of(from + part * kRegister, tap));
      sums_[vector * kParts + part] += (two & 0xffff) + (two >> 16);
    }
  }

  int64_t largest() const {
    int64_t most = 0;
    for (const Wides& sum : sums_) {
      for (int64_t lane = 0; lane < kRegister / 4; ++lane) most = std::max<int64_t>(most, sum[lane]);
    }
    return most;
  }

 private:
  static constexpr int64_t kParts = kVectorBytes / kRegister;
  Wides sums_[kBlockVectors * kParts] = {};
};

// Whether the sums of a source may be too large for one part, so that magnitudes matter.
QDIFF_INLINE bool may_need_parts(const ConvSource& s) { return s.quads * 4 * 9 * (s.nibbles ? 8 : 128) * 128 >= kReach; }

// A block of a panel's weights, [position][pair][kPanel][2] of `quads` quads from `first`, made piece by piece: a piece is 16
// output channels of a quad. Pairs are in the order of transform_input.
class BlockWeights {
 public:
  BlockWeights(const Conv& p, int64_t source, int64_t panel, int64_t first, int64_t quads, int16_t* to)
      : packed_(p, source, panel),
        first_(first),
        quads_(quads),
        vectors_(vectors_of_block(p, panel)),
        measures_(may_need_parts(p.sources[source]) && !packed_.nibbles),
        to_(to) {}

  int64_t pieces() const { return quads_ * vectors_; }

  // The largest sum of magnitudes over the output channels, or a bound of it, where it matters.
  int64_t magnitude() const { return measures_ ? magnitudes_.largest() : quads_ * 36 * (packed_.nibbles ? 8 : 128); }

  // As if it were made.
  void measure() {
    for (int64_t q = 0; measures_ && q < quads_; ++q) {
      for (int64_t v = 0; v < vectors_; ++v) magnitudes_.add(packed_.at(v, first_ + q), packed_.tap, v);
    }
  }

  void piece(int64_t number) {
    const int64_t q = number / vectors_, v = number % vectors_, position = weight_position(quads_);
    const int64_t group = q / kGroupQuads * kGroupQuads, in_group = std::min(kGroupQuads, quads_ - group);
    int16_t *even = to_ + (group + q) * kPanel * 2 + v * kLanes * 2, *odd = even + in_group * kPanel * 2;
    const int8_t* from = packed_.at(v, first_ + q);
    if (measures_) magnitudes_.add(from, packed_.tap, v);
    if (!packed_.nibbles) {
      transform_vector<false, false>(from, packed_.tap, even, odd, position);
    } else if (v % 2) {
      transform_vector<true, true>(from, packed_.tap, even, odd, position);
    } else {
      transform_vector<true, false>(from, packed_.tap, even, odd, position);
    }
  }

 private:
  PackedPanel packed_;
  int64_t first_, quads_, vectors_;
  bool measures_;
  int16_t* to_;
  Magnitudes magnitudes_;
};

// --------------------------------------------------------------------------------------------------- outputs

// Of one tile and as many channels as a register has: [down][across][kPanel] sums of codes less 128 times weights, and
// `start`.
QDIFF_INLINE void transform_output(const int32_t* m, int64_t position, const Wides& start, int64_t down, int64_t across,
                                   int32_t* to) {
  Wides half[kOutputs][kPatch];
  for (int64_t j = 0; j < kPatch; ++j) {
    Unsigneds in[kPatch], made[kOutputs];
    for (int64_t i = 0; i < kPatch; ++i) in[i] = load_raw<Unsigneds>(m + (i * kPatch + j) * position);
    output_transform(in, made);
    for (int64_t i = 0; i < kOutputs; ++i) half[i][j] = Wides(made[i]);
  }
  constexpr uint32_t kInverseOfNine = 954437177;
  for (int64_t i = 0; i < down; ++i) {
    Unsigneds in[kPatch], made[kOutputs];
    for (int64_t j = 0; j < kPatch; ++j) in[j] = Unsigneds(half[i][j]);
    output_transform(in, made);
    for (int64_t j = 0; j < across; ++j) {
      store_raw(to + (i * across + j) * kPanel, (Wides(made[j] * kInverseOfNine) >> 6) + start);
    }
  }
}

// What one thread needs beside what it shares.
struct WinogradMemory {
  int16_t* own;        // weights, or inputs of two chunks
  int32_t* products;
  int32_t* sums;       // [tile][4x4][kPanel], of the parts before
  float* float_sums;   // the same, of the sources before

  WinogradMemory(const Conv& p, const WinogradPlan& plan, void* from) {
    own = static_cast<int16_t*>(from);
    products = reinterpret_cast<int32_t*>(own + plan.own(p));
    sums = products + kPositions * product_position(plan.chunk);
    float_sums = reinterpret_cast<float*>(sums + plan.chunk * kTileSums);
  }
};

// Which part of a source's sums is being finished.
struct Part {
  bool first, last;            // of its parts
  bool first_source, last_source;
};

// Calls with where each vector of the sums of some pixels is.
template <typename Use>
QDIFF_INLINE void each_sum(const Place& at, const Use& use) {
  for (int64_t r = 0; r < at.rows; ++r) {
    for (int64_t v = 0; v < at.channels; v += kLanes) use(r * kPanel + v);
  }
}

void finish_rows(const Conv& p, const ConvSource& s, const Part& part, const Place& at, int32_t* sums, float* float_sums,
                 Tile& tile) {
  if (!part.first) {
    each_sum(at, [&](int64_t i) { store_raw(tile.acc + i, load_raw<Words>(tile.acc + i) + load_raw<Words>(sums + i)); });
  }
  if (!part.last) return each_sum(at, [&](int64_t i) { store_raw(sums + i, load_raw<Ints>(tile.acc + i)); });
  if (!part.first_source) each_sum(at, [&](int64_t i) { store(tile.sum + i, load(float_sums + i)); });
  if (!part.last_source) {
    add_to(tile.sum, part.first_source, tile, s, at);
    return each_sum(at, [&](int64_t i) { store(float_sums + i, load(tile.sum + i)); });
  }
  finish_tile(p, s, !part.first_source, tile, at);
}

void finish_chunk(const Conv& p, const ConvSource& s, const WinogradPlan& plan, int64_t chunk, int64_t panel, const Part& part,
                  const WinogradMemory& memory, Tile& tile) {
  const int64_t channel = panel * kPanel, channels = std::min(kPanel, p.out_channels - channel);
  const int64_t whole = vectors_of_block(p, panel) * kLanes;
  const int32_t centre = 128 - s.zero_point;
  for (int64_t i = 0; i < plan.tiles_of(chunk); ++i) {
    const int64_t at = chunk * plan.chunk + i;
    const int64_t x = at % plan.tile_cols * kOutputs, y = at / plan.tile_cols % plan.tile_rows * kOutputs;
    const int64_t image = at / (plan.tile_cols * plan.tile_rows);
    const int64_t across = std::min(kOutputs, p.out_w - x), down = std::min(kOutputs, p.out_h - y);
    const Place place{(image * p.out_h + y) * p.out_w + x, down * across, across, p.out_w, panel, channel, channels};
    fetch_ahead(p, place);
    for (int64_t c = 0; c < whole; c += kRegister / 4) {
      const Wides from = part.first ? load_raw<Wides>(s.sums + channel + c) * centre : Wides{};
      const int32_t* products = memory.products + i * kPanel + c;
      if (down == kOutputs && across == kOutputs) {
        transform_output(products, product_position(plan.chunk), from, kOutputs, kOutputs, tile.acc + c);
      } else {
        transform_output(products, product_position(plan.chunk), from, down, across, tile.acc + c);
      }
    }
    finish_rows(p, s, part, place, memory.sums + i * kTileSums, memory.float_sums + i * kTileSums, tile);
  }
}

// --------------------------------------------------------------------------------------------------- products

// What will be needed next is made between products, piece by piece: it takes its time by writing to memory, and products by
// computing, and so each goes on during the other.
template <typename Work>
class Aside {
 public:
  Aside() = default;
  // To be done in the course of so many products.
  Aside(const Work& work, int64_t products) : work_(work), pieces_(work.pieces()), products_(products) {}

  void after_product() {
    ++done_products_;
    while (done_ * products_ < pieces_ * done_products_ && done_ < pieces_) work_->piece(done_++);
  }

  // The rest of it; there has to be some.
  const Work& finish() {
    while (done_ < pieces_) work_->piece(done_++);
    return *work_;
  }

 private:
  std::optional<Work> work_;
  int64_t pieces_ = 0, products_ = 1, done_ = 0, done_products_ = 0;
};

// A block of input channels times those of a panel of output channels, for a chunk of tiles.
struct Step {
  int64_t panel, chunk, source, block;
  const int16_t* input;
  int16_t* weights;
  bool makes_weights;  // they are not there yet
};

int64_t row_steps(const WinogradPlan& plan, int64_t chunk) { return ceil_div(plan.tiles_of(chunk), kWinogradRows); }

template <typename Work>
void multiply_block(const Conv& p, const WinogradPlan& plan, const Step& step, bool add, int32_t* products, Aside<Work>& aside) {
  const Blocks blocks(p.sources[step.source].quads);
  const int64_t quads = blocks.quads_of(step.block), vectors = vectors_of_block(p, step.panel);
  const int64_t tiles = plan.tiles_of(step.chunk), steps = row_steps(plan, step.chunk);
  const int16_t *input = step.input, *weights = step.weights;
  for (int64_t at = 0; at < kPositions; ++at) {
    const char* ahead = reinterpret_cast<const char*>(input + input_position(quads, plan.chunk));
    int64_t row = 0;
    for (int64_t left = steps; left > 0; --left) {
      const int64_t rows = ceil_div(tiles - row, left);
      multiply_pairs(input + row * row_stride(quads), row_stride(quads), rows, weights, 2 * quads, vectors, products + row * kPanel,
                     add, ahead + row * row_stride(quads) * 2);
      aside.after_product();
      row += rows;
    }
    input += input_position(quads, plan.chunk);
    weights += weight_position(quads);
    products += product_position(plan.chunk);
  }
}

BlockWeights weights_of(const Conv& p, const Step& step) {
  const Blocks blocks(p.sources[step.source].quads);
  return {p, step.source, step.panel, step.block * blocks.size, blocks.quads_of(step.block), step.weights};
}

// Multiplies step by step, and finishes the sums of a source as soon as they are whole, or might become too large.
class Summation {
 public:
  Summation(const Conv& p, const WinogradPlan& plan, const WinogradMemory& memory) : p_(p), plan_(plan), memory_(memory) {}

  // What the magnitudes of its weights are, where that was found while they were made.
  void know(const Step& step, const BlockWeights& weights) { known_[{step.panel, step.source, step.block}] = weights.magnitude(); }

  template <typename Work>
  void add(const Step& step, Aside<Work>& aside) {
    const ConvSource& s = p_.sources[step.source];
    const Blocks blocks(s.quads);
    if (step.block == 0) first_part_ = true, open_ = false, sum_ = 0;
    if (may_need_parts(s)) {
      const int64_t more = magnitude(step);
      if (open_ && (sum_ + more) * 128 >= kReach) {
        finish(step, false);
        first_part_ = false, open_ = false, sum_ = 0;
      }
      sum_ += more;
    }
    multiply_block(p_, plan_, step, open_, memory_.products, aside);
    open_ = true;
    if (step.block + 1 == blocks.count) finish(step, true);
  }

 private:
  int64_t magnitude(const Step& step) {
    const auto [found, is_new] = known_.try_emplace({step.panel, step.source, step.block}, 0);
    if (is_new) {
      BlockWeights weights = weights_of(p_, step);
      weights.measure();
      found->second = weights.magnitude();
    }
    return found->second;
  }

  void finish(const Step& step, bool last) {
    const Part part{first_part_, last, step.source == 0, step.source + 1 == p_.source_count};
    finish_chunk(p_, p_.sources[step.source], plan_, step.chunk, step.panel, part, memory_, tile_);
  }

  const Conv& p_;
  const WinogradPlan& plan_;
  const WinogradMemory& memory_;
  std::map<std::array<int64_t, 3>, int64_t> known_;
  bool first_part_ = true, open_ = false;  // whether products have been summed that are not finished
  int64_t sum_ = 0;
  Tile tile_;
};

// ------------------------------------------------------------------------------------------- panel after panel

// The steps of a thread's tasks, where a task is a panel.
class PanelSteps {
 public:
  PanelSteps(const Conv& p, const WinogradPlan& plan, int64_t run, const int16_t* inputs, int16_t* weights, Tasks& tasks)
      : p_(p), plan_(plan), run_(run), inputs_(inputs), weights_(weights), chunk_size_(input_chunk_size(p, plan.chunk)), tasks_(tasks) {}

  bool next(Step& step) {
    if (chunk_ == last_chunk_ && !next_task()) return false;
    const int64_t source = source_, block = block_;
    const Blocks blocks(p_.sources[source].quads);
    const int64_t quads = blocks.quads_of(block), size = kPositions * weight_position(quads);
    const bool again = plan_.keeps_weights && chunk_ != first_chunk_;
    step = {panel_, chunk_, source, block, input_, plan_.keeps_weights ? kept_ : weights_ + made_ % 2 * plan_.sizes.largest, !again};
    made_ += !again;
    input_ += input_block_size(quads, plan_.chunk), kept_ += size;
    if (++block_ == blocks.count) block_ = 0, ++source_;
    if (source_ == p_.source_count) source_ = 0, begin_chunk(chunk_ + 1);
    return true;
  }

 private:
  bool next_task() {
    if (task_ == last_task_ && !tasks_.take(task_, last_task_)) return false;
    const int64_t split = task_ % plan_.splits, before = plan_.first_chunk(run_), count = plan_.last_chunk(run_) - before;
    panel_ = task_++ / plan_.splits;
    first_chunk_ = before + count * split / plan_.splits, last_chunk_ = before + count * (split + 1) / plan_.splits;
    begin_chunk(first_chunk_);
    return chunk_ < last_chunk_ || next_task();
  }

  void begin_chunk(int64_t chunk) {
    chunk_ = chunk, kept_ = weights_;
    input_ = inputs_ + (chunk - plan_.first_chunk(run_)) * chunk_size_;
  }

  const Conv& p_;
  const WinogradPlan& plan_;
  const int64_t run_;
  const int16_t* inputs_;
  int16_t* weights_;
  const int64_t chunk_size_;
  Tasks& tasks_;
  int64_t task_ = 0, last_task_ = 0, panel_ = 0, first_chunk_ = 0, chunk_ = 0, last_chunk_ = 0;
  int64_t source_ = 0, block_ = 0, made_ = 0;
  const int16_t* input_ = nullptr;
  int16_t* kept_ = nullptr;
};

void make(const Conv& p, const Step& step, Summation& summation) {
  Aside<BlockWeights> weights(weights_of(p, step), 1);
  summation.know(step, weights.finish());
}

void by_panels(const Conv& p, const WinogradPlan& plan, int64_t run, const int16_t* inputs, const WinogradMemory& memory,
               Tasks& tasks) {
  PanelSteps steps(p, plan, run, inputs, memory.own, tasks);
  Summation summation(p, plan, memory);
  Step step, next;
  bool more = steps.next(step), is_made = false;
  while (more) {
    if (step.makes_weights && !is_made) make(p, step, summation);
    more = steps.next(next);
    is_made = more && next.makes_weights && next.weights != step.weights;
    if (!is_made) {
      Aside<BlockWeights> nothing;
      summation.add(step, nothing);
    } else {
      Aside<BlockWeights> aside(weights_of(p, next), kPositions * row_steps(plan, step.chunk));
      summation.add(step, aside);
      summation.know(next, aside.finish());
    }
    step = next;
  }
}

// ------------------------------------------------------------------------------------------- chunk after chunk

int64_t block_count(const Conv& p) {
  int64_t count = 0;
  for (int64_t i = 0; i < p.source_count; ++i) count += Blocks(p.sources[i].quads).count;
  return count;
}

// Calls with each block of a panel's weights and where it lies: (source, block, first element).
template <typename Use>
void each_block(const Conv& p, const Use& use) {
  int64_t first = 0;
  for (int64_t i = 0; i < p.source_count; ++i) {
    const Blocks blocks(p.sources[i].quads);
    for (int64_t b = 0; b < blocks.count; ++b) {
      use(i, b, first);
      first += kPositions * weight_position(blocks.quads_of(b));
    }
  }
}

// A task is a block of a panel's weights.
void make_all_weights(const Conv& p, const WinogradPlan& plan, int16_t* to, Tasks& tasks) {
  const int64_t per_panel = block_count(p);
  int64_t begin, end;
  while (tasks.take(begin, end)) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t panel = task / per_panel;
      int64_t left = task % per_panel;
      each_block(p, [&](int64_t source, int64_t block, int64_t first) {
        if (left-- != 0) return;
        const Blocks blocks(p.sources[source].quads);
        const BlockWeights weights(p, source, panel, block * blocks.size, blocks.quads_of(block), to + panel * plan.sizes.all + first);
        Aside<BlockWeights>(weights, 1).finish();
      });
    }
  }
}

// The numbers of tasks, one by one.
class OneByOne {
 public:
  explicit OneByOne(Tasks& tasks) : tasks_(tasks) {}

  std::optional<int64_t> next() {
    if (at_ == end_ && !tasks_.take(at_, end_)) return {};
    return at_++;
  }

 private:
  Tasks& tasks_;
  int64_t at_ = 0, end_ = 0;
};

void one_chunk(const Conv& p, const WinogradPlan& plan, int64_t chunk, const int16_t* inputs, int16_t* weights,
               Summation& summation, Aside<ChunkInputs>& aside) {
  for (int64_t panel = 0; panel < plan.panels; ++panel) {
    const int16_t* input = inputs;
    each_block(p, [&](int64_t source, int64_t block, int64_t first) {
      summation.add({panel, chunk, source, block, input, weights + panel * plan.sizes.all + first, false}, aside);
      const Blocks blocks(p.sources[source].quads);
      input += input_block_size(blocks.quads_of(block), plan.chunk);
    });
  }
}

void by_chunks(const Conv& p, const WinogradPlan& plan, int16_t* weights, const WinogradMemory& memory, Tasks& tasks) {
  OneByOne chunks(tasks);
  Summation summation(p, plan, memory);
  int16_t *inputs = memory.own, *next_inputs = memory.own + input_chunk_size(p, plan.chunk);
  auto chunk = chunks.next();
  if (chunk) Aside<ChunkInputs>({p, plan, *chunk, inputs}, 1).finish();
  while (chunk) {
    const auto next = chunks.next();
    const int64_t products = plan.panels * block_count(p) * kPositions * row_steps(plan, *chunk);
    Aside<ChunkInputs> aside = next ? Aside<ChunkInputs>({p, plan, *next, next_inputs}, products) : Aside<ChunkInputs>();
    one_chunk(p, plan, *chunk, inputs, weights, summation, aside);
    if (next) aside.finish();
    std::swap(inputs, next_inputs);
    chunk = next;
  }
}

// ------------------------------------------------------------------------------------------------- both ways

int64_t winograd_input_tasks(const Conv& p, int64_t run, int64_t threads) {
  const WinogradPlan plan(p, threads);
  return plan.by_chunks ? plan.panels * block_count(p) : plan.last_tile(run) - plan.first_tile(run);
}

// A task is a tile of the run.
void make_all_inputs(const Conv& p, const WinogradPlan& plan, int64_t run, int16_t* to, Tasks& tasks) {
  const int64_t chunk_size = input_chunk_size(p, plan.chunk);
  int64_t begin, end;
  while (tasks.take(begin, end)) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t of_run = task / plan.chunk;
      ChunkInputs(p, plan, plan.first_chunk(run) + of_run, to + of_run * chunk_size).tile(task % plan.chunk);
    }
  }
}

void winograd_input(const Conv& p, int64_t run, void* shared, int64_t threads, Tasks& tasks) {
  const WinogradPlan plan(p, threads);
  int16_t* to = static_cast<int16_t*>(shared);
  return plan.by_chunks ? make_all_weights(p, plan, to, tasks) : make_all_inputs(p, plan, run, to, tasks);
}

int64_t winograd_tasks(const Conv& p, int64_t threads) { return WinogradPlan(p, threads).tasks(); }

void winograd(const Conv& p, int64_t run, void* shared, void* of_thread, int64_t threads, Tasks& tasks) {
  const WinogradPlan plan(p, threads);
  const WinogradMemory memory(p, plan, of_thread);
  int16_t* made = static_cast<int16_t*>(shared);
  return plan.by_chunks ? by_chunks(p, plan, made, memory, tasks) : by_panels(p, plan, run, made, memory, tasks);
}

// ------------------------------------------------------------------------------------------------- what it costs

// Cycles of one core by either way, from rates measured for the instruction set (benchmarks/kernels/bench_winograd.py).
bool winograd_pays(const Conv& p, int64_t threads) {
  const WinogradPlan plan(p, threads);
  const double outputs = double(ceil_div(p.out_channels, kLanes) * kLanes), tiles = double(plan.tiles);
  const double results = double(p.batch) * double(p.out_h) * double(p.out_w) * outputs;
  // Sums of few rows and vectors wait for each other.
  const double rows = std::min<double>(kWinogradRows, tiles), vectors = std::min<double>(kBlockVectors, outputs / kLanes);
  const double full = std::min(1.0, rows * vectors / kRates.sums_in_flight);
  double direct = 0, products = 0, weights = 0, inputs = 0;
  for (int64_t i = 0; i < p.source_count; ++i) {
    const double channels = double(p.sources[i].quads * 4);
    direct += results * channels * 9 / (p.sources[i].nibbles ? kRates.direct_nibbles : kRates.direct);
    products += kPositions * tiles * channels * outputs / (kRates.product * full);
    weights += kRates.weight * channels * outputs * double(plan.by_chunks ? 1 : plan.keeps_weights ? plan.runs * plan.splits : plan.chunks);
    inputs += kRates.input * tiles * channels;
  }
  const double sums = kRates.output * kOutputs * kOutputs * tiles * outputs * double(p.source_count);
  const double tasks = double(plan.tasks()), rounds = double(ceil_div(plan.tasks(), threads));
  return inputs / double(threads) + (products + weights + sums) * rounds / tasks < 0.95 * direct / double(threads);
}

const Winograd kWinograd = {winograd_pays,        winograd_runs,  winograd_shared_bytes, winograd_thread_bytes,
                            winograd_input_tasks, winograd_input, winograd_tasks,        winograd};

}  // namespace
}  // namespace qdiff
