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

#include <vector>

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

template <typename V>
QDIFF_INLINE void input_transform(const V (&d)[kPatch], V (&out)[kPatch]) {
  const V even = d[4] - d[2], odd = d[3] - d[1];
  const V far_even = d[4] - (d[2] << 2), far_odd = d[3] - (d[1] << 2);
  out[0] = ((d[0] - d[2]) << 2) + even;
  out[1] = far_even + far_odd;
  out[2] = far_even - far_odd;
  out[3] = even + (odd << 1);
  out[4] = even - (odd << 1);
  out[5] = d[5] - d[3] - (odd << 2);
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

// How the work is cut: into runs of chunks of tiles. Of a run first all inputs are transformed, then a task is one panel of
// output channels over one of `splits` parts of its chunks.
struct WinogradPlan {
  int64_t tile_rows, tile_cols, tiles;  // of 4x4 results, over the whole batch
  int64_t chunk, chunks;                // tiles multiplied while their inputs stay in cache
  int64_t run, runs;                    // chunks
  int64_t panels, splits;
  int64_t weights;                      // elements of transformed weights that a thread has room for
  bool keeps_weights;                   // from chunk to chunk

  WinogradPlan(const Conv& p, int64_t threads) {
    tile_rows = ceil_div(p.out_h, kOutputs), tile_cols = ceil_div(p.out_w, kOutputs);
    tiles = p.batch * tile_rows * tile_cols;
    panels = ceil_div(p.out_channels, kPanel);
    // Every thread should have a task.
    chunks = std::max(ceil_div(tiles, kChunkTiles), std::min(ceil_div(threads, panels), ceil_div(tiles, kWinogradRows)));
    chunk = ceil_div(ceil_div(tiles, chunks), kWinogradRows) * kWinogradRows;
    chunks = ceil_div(tiles, chunk);
    const int64_t most = std::max<int64_t>(1, kSharedInputs / (input_chunk_size(p, chunk) * 2));
    runs = ceil_div(chunks, most);
    run = ceil_div(chunks, runs);
    runs = ceil_div(chunks, run);
    splits = 1;
    while (panels * splits % threads != 0 && panels * splits < 8 * threads && 2 * splits <= run) splits *= 2;
    const WeightSizes sizes(p);
    keeps_weights = run > splits && sizes.all * 2 <= kKeptWeights;
    weights = keeps_weights ? sizes.all : sizes.largest;
  }

  int64_t tasks() const { return panels * splits; }
  int64_t tiles_of(int64_t at) const { return std::min(chunk, tiles - at * chunk); }
  int64_t first_chunk(int64_t of_run) const { return of_run * run; }
  int64_t last_chunk(int64_t of_run) const { return std::min(chunks, (of_run + 1) * run); }
  int64_t first_tile(int64_t of_run) const { return first_chunk(of_run) * chunk; }
  int64_t last_tile(int64_t of_run) const { return std::min(tiles, last_chunk(of_run) * chunk); }
};

constexpr int64_t kTileSums = kOutputs * kOutputs * kPanel;

// Bytes of scratch memory, those of every thread, and those of the transformed inputs which all share.
int64_t winograd_thread_bytes(const Conv& p, int64_t threads) {
  const WinogradPlan plan(p, threads);
  return ceil_div(plan.weights * 2 + kPositions * product_position(plan.chunk) * 4 + 2 * plan.chunk * kTileSums * 4, 64) * 64;
}

int64_t winograd_shared_bytes(const Conv& p, int64_t threads) {
  const WinogradPlan plan(p, threads);
  return ceil_div(plan.run * input_chunk_size(p, plan.chunk) * 2, 64) * 64;
}

int64_t winograd_runs(const Conv& p, int64_t threads) { return WinogradPlan(p, threads).runs; }

// ---------------------------------------------------------------------------------------------------- inputs

// Where the 6x6 pixels that a tile reads are.
struct Patch {
  const uint8_t* pixels[kPatch][kPatch];

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

// Codes less 128 of every second channel: those at even places of each group of four, or (`odd`) at odd ones. So neither
// codes nor weights, which are cut up alike, have to be moved from one lane to another.
QDIFF_INLINE Shorts centred(const uint8_t* codes, bool odd) {
  const Shorts both = load_raw<Shorts>(codes) ^ int16_t(0x8080);
  return odd ? both >> 8 : (both << 8) >> 8;
}

template <typename Read>
QDIFF_INLINE void transform_patch(const Read& read, int16_t* to, int64_t position) {
  Shorts half[kPatch][kPatch];
  for (int64_t j = 0; j < kPatch; ++j) {
    const Shorts column[kPatch] = {read(0, j), read(1, j), read(2, j), read(3, j), read(4, j), read(5, j)};
    Shorts made[kPatch];
    input_transform(column, made);
    for (int64_t i = 0; i < kPatch; ++i) half[i][j] = made[i];
  }
  for (int64_t i = 0; i < kPatch; ++i) {
    Shorts made[kPatch];
    input_transform(half[i], made);
    for (int64_t j = 0; j < kPatch; ++j) store_raw(to + (i * kPatch + j) * position, made[j]);
  }
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
        const auto read = [&](int64_t i, int64_t j) { return centred(patch.pixels[i][j] + byte, odd); };
        transform_patch(read, to + odd * kRegister / 2, position);
      }
      continue;
    }
    alignas(64) uint8_t rest[kPatch][kPatch][kRegister] = {};
    for (int64_t i = 0; i < kPatch; ++i) {
      for (int64_t j = 0; j < kPatch; ++j) std::memcpy(rest[i][j], patch.pixels[i][j] + byte, size_t(count * 4));
    }
    for (int odd = 0; odd < 2; ++odd) {  // the second over what the first has written too much
      const auto read = [&](int64_t i, int64_t j) { return centred(rest[i][j], odd); };
      transform_patch(read, to + odd * count * 2, position);
    }
  }
}

// A task is a tile of the run. [chunk][source][block][position][tile][channel].
void winograd_input(const Conv& p, int64_t run, void* shared, int64_t threads, Tasks& tasks) {
  const WinogradPlan plan(p, threads);
  const int64_t before = plan.first_tile(run);
  const int64_t chunk_size = input_chunk_size(p, plan.chunk);
  int64_t begin, end;
  while (tasks.take(begin, end)) {
    for (int64_t tile = before + begin; tile < before + end; ++tile) {
      int16_t* to = static_cast<int16_t*>(shared) + (tile - before) / plan.chunk * chunk_size;
      for (int64_t i = 0; i < p.source_count; ++i) {
        const Patch patch(p, p.sources[i], plan, tile);
        const Blocks blocks(p.sources[i].quads);
        for (int64_t b = 0; b < blocks.count; ++b) {
          const int64_t quads = blocks.quads_of(b);
          transform_input(patch, b * blocks.size, quads, to + tile % plan.chunk * row_stride(quads),
                          input_position(quads, plan.chunk));
          to += input_block_size(quads, plan.chunk);
        }
      }
    }
  }
}

int64_t winograd_input_tasks(const Conv& p, int64_t run, int64_t threads) {
  const WinogradPlan plan(p, threads);
  return plan.last_tile(run) - plan.first_tile(run);
}

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

// [position][pair][kPanel][2] of `quads` quads from `first`; pairs are in the order of transform_input.
void transform_weights(const Conv& p, int64_t source, int64_t panel, int64_t first, int64_t quads, int16_t* to) {
  const int64_t position = weight_position(quads), vectors = vectors_of_block(p, panel);
  const PackedPanel packed(p, source, panel);
  for (int64_t q = 0; q < quads; ++q) {
    const int64_t group = q / kGroupQuads * kGroupQuads, in_group = std::min(kGroupQuads, quads - group);
    int16_t* row = to + (group + q) * kPanel * 2;
    for (int64_t v = 0; v < vectors; ++v) {
      int16_t *even = row + v * kLanes * 2, *odd = even + in_group * kPanel * 2;
      const int8_t* from = packed.at(v, first + q);
      if (!packed.nibbles) {
        transform_vector<false, false>(from, packed.tap, even, odd, position);
      } else if (v % 2) {
        transform_vector<true, true>(from, packed.tap, even, odd, position);
      } else {
        transform_vector<true, false>(from, packed.tap, even, odd, position);
      }
    }
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

// The largest sum of magnitudes over the output channels of a panel, of the same weights; they are whole bytes.
int64_t largest_magnitudes(const Conv& p, int64_t source, int64_t panel, int64_t first, int64_t quads) {
  int64_t most = 0;
  const PackedPanel packed(p, source, panel);
  for (int64_t v = 0; v < vectors_of_block(p, panel); ++v) {
    for (int64_t byte = 0; byte < kVectorBytes; byte += kRegister) {
      Wides sum{};
      for (int64_t q = first; q < first + quads; ++q) {
        const Wides two = Wides(magnitudes_of(packed.at(v, q) + byte, packed.tap));
        sum += (two & 0xffff) + (two >> 16);
      }
      for (int64_t lane = 0; lane < kRegister / 4; ++lane) most = std::max<int64_t>(most, sum[lane]);
    }
  }
  return most;
}

// --------------------------------------------------------------------------------------------------- outputs

// Of one tile and as many channels as a register has: [4x4][kPanel] sums of codes less 128 times weights, and `start`.
QDIFF_INLINE void transform_output(const int32_t* m, int64_t position, const Wides& start, int32_t* to) {
  Wides half[kOutputs][kPatch];
  for (int64_t j = 0; j < kPatch; ++j) {
    Unsigneds in[kPatch], made[kOutputs];
    for (int64_t i = 0; i < kPatch; ++i) in[i] = load_raw<Unsigneds>(m + (i * kPatch + j) * position);
    output_transform(in, made);
    for (int64_t i = 0; i < kOutputs; ++i) half[i][j] = Wides(made[i]);
  }
  constexpr uint32_t kInverseOfNine = 954437177;
  for (int64_t i = 0; i < kOutputs; ++i) {
    Unsigneds in[kPatch], made[kOutputs];
    for (int64_t j = 0; j < kPatch; ++j) in[j] = Unsigneds(half[i][j]);
    output_transform(in, made);
    for (int64_t j = 0; j < kOutputs; ++j) {
      store_raw(to + (i * kOutputs + j) * kPanel, (Wides(made[j] * kInverseOfNine) >> 6) + start);
    }
  }
}

// What one thread needs beside the transformed inputs.
struct WinogradMemory {
  int16_t* weights;
  int32_t* products;
  int32_t* sums;       // [tile][4x4][kPanel], of the parts before
  float* float_sums;   // the same, of the sources before

  WinogradMemory(const WinogradPlan& plan, void* from) {
    weights = static_cast<int16_t*>(from);
    products = reinterpret_cast<int32_t*>(weights + plan.weights);
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
  const int64_t row = kOutputs * kPanel, whole = vectors_of_block(p, panel) * kLanes;
  const int32_t centre = 128 - s.zero_point;
  alignas(64) int32_t made[kTileSums];
  for (int64_t i = 0; i < plan.tiles_of(chunk); ++i) {
    const int64_t at = chunk * plan.chunk + i;
    const int64_t x = at % plan.tile_cols * kOutputs, y = at / plan.tile_cols % plan.tile_rows * kOutputs;
    const int64_t image = at / (plan.tile_cols * plan.tile_rows), across = std::min(kOutputs, p.out_w - x);
    for (int64_t c = 0; c < whole; c += kRegister / 4) {
      const Wides from = part.first ? load_raw<Wides>(s.sums + channel + c) * centre : Wides{};
      transform_output(memory.products + i * kPanel + c, product_position(plan.chunk), from, made + c);
    }
    for (int64_t r = 0; r < std::min(kOutputs, p.out_h - y); ++r) {
      const Place place{(image * p.out_h + y + r) * p.out_w + x, across, 0, channel, channels};
      each_sum(place, [&](int64_t k) { store_raw(tile.acc + k, load_raw<Ints>(made + r * row + k)); });
      const int64_t offset = i * kTileSums + r * row;
      finish_rows(p, s, part, place, memory.sums + offset, memory.float_sums + offset, tile);
    }
  }
}

// --------------------------------------------------------------------------------------------------- products

void multiply_block(const WinogradPlan& plan, int64_t tiles, int64_t quads, int64_t vectors, const int16_t* input,
                    const int16_t* weights, bool add, int32_t* products) {
  const int64_t steps = ceil_div(tiles, kWinogradRows);
  for (int64_t at = 0; at < kPositions; ++at) {
    const char* ahead = reinterpret_cast<const char*>(input + input_position(quads, plan.chunk));
    int64_t row = 0;
    for (int64_t step = steps; step > 0; --step) {
      const int64_t rows = ceil_div(tiles - row, step);
      multiply_pairs(input + row * row_stride(quads), row_stride(quads), rows, weights, 2 * quads, vectors, products + row * kPanel,
                     add, ahead + row * row_stride(quads) * 2);
      row += rows;
    }
    input += input_position(quads, plan.chunk);
    weights += weight_position(quads);
    products += product_position(plan.chunk);
  }
}

// Whether a panel's transformed weights are there already, and whether they are needed again.
enum class Use { once, first, again };

// One panel of output channels of one chunk of tiles. `magnitudes` are those of the panel's blocks of weights, where it
// matters; the first chunk finds them.
void winograd_chunk(const Conv& p, const WinogradPlan& plan, int64_t panel, int64_t chunk, Use use, const int16_t* input,
                    const WinogradMemory& memory, std::vector<int64_t>& magnitudes, Tile& tile) {
  int16_t* weights = memory.weights;
  size_t block = 0;
  for (int64_t i = 0; i < p.source_count; ++i) {
    const ConvSource& s = p.sources[i];
    const Blocks blocks(s.quads);
    const int64_t most = s.nibbles ? 8 : 128;
    bool first = true, add = false;
    int64_t sum = 0;
    const bool whole = s.quads * 4 * 9 * most * 128 < kReach;
    for (int64_t b = 0; b < blocks.count; ++b) {
      const int64_t quads = blocks.quads_of(b), from = b * blocks.size;
      if (use != Use::again) transform_weights(p, i, panel, from, quads, weights);
      if (!whole) {
        if (block == magnitudes.size()) {
          magnitudes.push_back(s.nibbles ? quads * 36 * most : largest_magnitudes(p, i, panel, from, quads));
        }
        const int64_t more = magnitudes[block++];
        if (add && (sum + more) * 128 >= kReach) {
          finish_chunk(p, s, plan, chunk, panel, {first, false, i == 0, i + 1 == p.source_count}, memory, tile);
          first = false, add = false, sum = 0;
        }
        sum += more;
      }
      multiply_block(plan, plan.tiles_of(chunk), quads, vectors_of_block(p, panel), input, weights, add, memory.products);
      add = true;
      input += input_block_size(quads, plan.chunk);
      if (use != Use::once) weights += kPositions * weight_position(quads);
    }
    finish_chunk(p, s, plan, chunk, panel, {first, true, i == 0, i + 1 == p.source_count}, memory, tile);
  }
}

// Tasks are numbered 0 .. panels * splits.
int64_t winograd_tasks(const Conv& p, int64_t threads) { return WinogradPlan(p, threads).tasks(); }

void winograd(const Conv& p, int64_t run, const void* shared, void* of_thread, int64_t threads, Tasks& tasks) {
  const WinogradPlan plan(p, threads);
  const WinogradMemory memory(plan, of_thread);
  const int64_t chunk_size = input_chunk_size(p, plan.chunk);
  std::vector<int64_t> magnitudes;
  Tile tile;
  int64_t begin, end;
  while (tasks.take(begin, end)) {
    for (int64_t task = begin; task < end; ++task) {
      magnitudes.clear();
      const int64_t panel = task / plan.splits, split = task % plan.splits;
      const int64_t before = plan.first_chunk(run), count = plan.last_chunk(run) - before;
      const int64_t from = count * split / plan.splits, to = count * (split + 1) / plan.splits;
      for (int64_t chunk = from; chunk < to; ++chunk) {
        const Use use = !plan.keeps_weights ? Use::once : chunk == from ? Use::first : Use::again;
        const int16_t* input = static_cast<const int16_t*>(shared) + chunk * chunk_size;
        winograd_chunk(p, plan, panel, before + chunk, use, input, memory, magnitudes, tile);
      }
    }
  }
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
    weights += kRates.weight * channels * outputs * double(plan.keeps_weights ? plan.runs * plan.splits : plan.chunks);
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
