// Dot products for AVX2. The instruction that multiplies unsigned by signed bytes adds two products in 16 bits and saturates:
// 255 * 127 * 2 does not fit. So bytes are widened to 16 bits before they are multiplied, except where the weights at hand are
// so small that sums of products fit: then some steps are added up in 16 bits before they are widened.
//
// The tile is 6 rows by 2 registers everywhere: 12 sums, two of weights, one of codes and one product are all there are.
// Codes of the rows are gathered into memory of a known stride first, so that one register says where all of them are.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/vec.h"

namespace qdiff {
namespace {

// Some vectors of 16 output channels of weights: [vector][quad of inputs][16 channels][4].
struct Panel {
  const int8_t* weight;
  int64_t vector_step, quad_step;  // bytes
  int window;  // so many steps of products of two inputs fit into 16 bits; 0 where none does
};

constexpr int kWidest = 8;  // steps of 4-bit weights: 255 * 8 * 2 * 8 <= 2^15

// How many steps fit if no weight is below -2^bits or above 2^bits - 1.
constexpr int window_of(int bits) { return bits >= 7 ? 0 : std::min(kWidest, 64 >> bits); }

constexpr int64_t kChunkQuads = 256;  // gathered at a time: their codes, widened, take a third of the first cache
constexpr int64_t kWideStride = 4 * kChunkQuads + 32;    // elements from row to row; not a multiple of 4 KB
constexpr int64_t kNarrowStride = 4 * kChunkQuads + 64;  // bytes

struct Gathered {
  alignas(64) int16_t wide[kTileRows * kWideStride];
  alignas(64) uint8_t narrow[kTileRows * kNarrowStride];
};

QDIFF_INLINE void widen_quads(const uint8_t* from, int64_t quads, int16_t* to) {
  int64_t k = 0;
  for (; k + 4 <= quads; k += 4) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 4 * k));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 4 * k), _mm256_cvtepu8_epi16(codes));
  }
  for (; k < quads; ++k) {
    int32_t quad;
    std::memcpy(&quad, from + 4 * k, sizeof(quad));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to + 4 * k), _mm_cvtepu8_epi16(_mm_cvtsi32_si128(quad)));
  }
}

QDIFF_INLINE void copy_quads(const uint8_t* from, int64_t quads, uint8_t* to) {
  int64_t k = 0;
  for (; k + 8 <= quads; k += 8) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 4 * k));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 4 * k), codes);
  }
  for (; k < quads; ++k) std::memcpy(to + 4 * k, from + 4 * k, 4);
}

// Quads `first` to `first + count` of all there are, tap after tap, of each of R rows.
template <int R, typename Take>
QDIFF_INLINE void gather(const Rows* rows, int64_t quads, int64_t first, int64_t count, const Take& take) {
  int64_t tap = first / quads, k = first % quads;
  for (int64_t done = 0; done < count; ++tap, k = 0) {
    const int64_t some = std::min(quads - k, count - done);
    for (int r = 0; r < R; ++r) take(r, rows[tap][r] + 4 * k, some, done);
    done += some;
  }
}

// sum += products of one row's codes with two registers of weights. The compiler, left alone, moves tiles to memory.
QDIFF_INLINE void dot_wide(__m256i& first, __m256i& second, const int16_t* codes, const __m256i& a, const __m256i& b) {
  __m256i product, other;
  asm("vpbroadcastq %4, %2\n\t"
      "vpmaddwd %5, %2, %3\n\t"
      "vpmaddwd %6, %2, %2\n\t"
      "vpaddd %3, %0, %0\n\t"
      "vpaddd %2, %1, %1"
      : "+x"(first), "+x"(second), "=&x"(other), "=&x"(product)
      : "m"(*reinterpret_cast<const int64_t(*)>(codes)), "x"(a), "x"(b));
}

// The same in 16 bits, of bytes.
QDIFF_INLINE void dot_narrow(__m256i& first, __m256i& second, const uint8_t* codes, const __m256i& a, const __m256i& b) {
  __m256i product, other;
  asm("vpbroadcastd %4, %2\n\t"
      "vpmaddubsw %5, %2, %3\n\t"
      "vpmaddubsw %6, %2, %2\n\t"
      "vpaddw %3, %0, %0\n\t"
      "vpaddw %2, %1, %1"
      : "+x"(first), "+x"(second), "=&x"(other), "=&x"(product)
      : "m"(*reinterpret_cast<const int32_t(*)>(codes)), "x"(a), "x"(b));
}

QDIFF_INLINE __m256i load_ints(const int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

QDIFF_INLINE void store_ints(int32_t* to, const __m256i& x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x); }

// Weights come from the second cache, those of the steps after next ones soon enough.
QDIFF_INLINE void fetch_ahead(const int8_t* weight, int steps, int64_t step) {
  constexpr int64_t kAhead = 16;
#pragma GCC unroll 8
  for (int s = 0; s < steps; ++s) __builtin_prefetch(weight + (kAhead + s) * step);
}

// Eight channels of R rows: two partial sums of each lie side by side until the end.
template <int R>
__attribute__((noinline)) void wide_tile(const int16_t* codes, int64_t quads, const int8_t* weight, int64_t step,
                                         const int32_t* from, int64_t from_stride, int32_t* out) {
  __m256i acc[R][2] = {};
  for (int64_t k = 0; k < quads; ++k, weight += step, codes += 4) {
    fetch_ahead(weight, 1, step);
    const __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight)));
    const __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight + 16)));
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) dot_wide(acc[r][0], acc[r][1], codes + r * kWideStride, a, b);
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    // hadd works within 128-bit lanes: channels come out as 0 1 4 5 2 3 6 7.
    const __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc[r][0], acc[r][1]), 0xd8);
    store_ints(out + r * kBlockChannels, _mm256_add_epi32(sums, load_ints(from + r * from_stride)));
  }
}

alignas(32) constexpr int16_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// sum += products of bytes, of which two, or four of two steps, are added up in 16 bits. For so few it costs less to widen
// each at once than to go through memory.
QDIFF_INLINE void dot_one(__m256i& first, __m256i& second, const uint8_t* codes, const __m256i& a, const __m256i& b) {
  __m256i product, other;
  asm("vpbroadcastd %4, %2\n\t"
      "vpmaddubsw %5, %2, %3\n\t"
      "vpmaddubsw %6, %2, %2\n\t"
      "vpmaddwd %7, %3, %3\n\t"
      "vpmaddwd %7, %2, %2\n\t"
      "vpaddd %3, %0, %0\n\t"
      "vpaddd %2, %1, %1"
      : "+x"(first), "+x"(second), "=&x"(other), "=&x"(product)
      : "m"(*reinterpret_cast<const int32_t(*)>(codes)), "x"(a), "x"(b), "m"(kOnes));
}

QDIFF_INLINE void dot_two(__m256i& first, __m256i& second, const uint8_t* codes, const int8_t* weight, int64_t step) {
  typedef const __m256i_u* Weight;
  __m256i product, other, next, last;
  asm("vpbroadcastd %[codes], %[other]\n\t"
      "vpmaddubsw %[a], %[other], %[product]\n\t"
      "vpmaddubsw %[b], %[other], %[other]\n\t"
      "vpbroadcastd %[more], %[last]\n\t"
      "vpmaddubsw %[c], %[last], %[next]\n\t"
      "vpmaddubsw %[d], %[last], %[last]\n\t"
      "vpaddw %[next], %[product], %[product]\n\t"
      "vpaddw %[last], %[other], %[other]\n\t"
      "vpmaddwd %[ones], %[product], %[product]\n\t"
      "vpmaddwd %[ones], %[other], %[other]\n\t"
      "vpaddd %[product], %[first], %[first]\n\t"
      "vpaddd %[other], %[second], %[second]"
      : [first] "+x"(first), [second] "+x"(second), [product] "=&x"(product), [other] "=&x"(other), [next] "=&x"(next),
        [last] "=&x"(last)
      : [codes] "m"(*reinterpret_cast<const int32_t(*)>(codes)), [more] "m"(*reinterpret_cast<const int32_t(*)>(codes + 4)),
        [a] "m"(*Weight(weight)), [b] "m"(*Weight(weight + 32)), [c] "m"(*Weight(weight + step)),
        [d] "m"(*Weight(weight + step + 32)), [ones] "m"(kOnes));
}

// Sixteen channels of R rows, added to `out`: windows of one or two steps.
template <int R, int W>
__attribute__((noinline)) void short_tile(const uint8_t* codes, int64_t windows, const int8_t* weight, int64_t step,
                                          int32_t* out) {
  __m256i acc[R][2];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    acc[r][0] = load_ints(out + r * kBlockChannels), acc[r][1] = load_ints(out + r * kBlockChannels + 8);
  }
  for (; windows > 0; --windows, weight += W * step, codes += 4 * W) {
    fetch_ahead(weight, W, step);
    if constexpr (W == 1) {
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight));
      const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight + 32));
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) dot_one(acc[r][0], acc[r][1], codes + r * kNarrowStride, a, b);
    } else {
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) dot_two(acc[r][0], acc[r][1], codes + r * kNarrowStride, weight, step);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    store_ints(out + r * kBlockChannels, acc[r][0]), store_ints(out + r * kBlockChannels + 8, acc[r][1]);
  }
}

// first = products of bytes of one row with two registers of weights, two added up in 16 bits.
QDIFF_INLINE void start_narrow(__m256i& first, __m256i& second, const uint8_t* codes, const __m256i& a, const __m256i& b) {
  int32_t quad;
  std::memcpy(&quad, codes, sizeof(quad));
  const __m256i all = _mm256_set1_epi32(quad);
  first = _mm256_maddubs_epi16(all, a);
  second = _mm256_maddubs_epi16(all, b);
}

// Sixteen channels of R rows, added to `out`: windows of W steps, each of which fits into 16 bits.
template <int R, int W>
__attribute__((noinline)) void long_tile(const uint8_t* codes, int64_t windows, const int8_t* weight, int64_t step,
                                         int32_t* out) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (; windows > 0; --windows) {
    __m256i acc[R][2];
    fetch_ahead(weight, W, step);
#pragma GCC unroll 8
    for (int s = 0; s < W; ++s, weight += step, codes += 4) {
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight));
      const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight + 32));
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const uint8_t* quad = codes + r * kNarrowStride;
        s == 0 ? start_narrow(acc[r][0], acc[r][1], quad, a, b) : dot_narrow(acc[r][0], acc[r][1], quad, a, b);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      int32_t* to = out + r * kBlockChannels;
      store_ints(to, _mm256_add_epi32(_mm256_madd_epi16(acc[r][0], ones), load_ints(to)));
      store_ints(to + 8, _mm256_add_epi32(_mm256_madd_epi16(acc[r][1], ones), load_ints(to + 8)));
    }
  }
}

// All `quads` of them, as many as there may be.
template <int R, int W>
QDIFF_INLINE void narrow_tiles(const uint8_t* codes, int64_t quads, const int8_t* weight, int64_t step, int32_t* out) {
  const int64_t windows = quads / W, rest = quads % W;
  if constexpr (W <= 2) {
    short_tile<R, W>(codes, windows, weight, step, out);
  } else {
    long_tile<R, W>(codes, windows, weight, step, out);
  }
  if (rest) short_tile<R, 1>(codes + 4 * windows * W, rest, weight + windows * W * step, step, out);
}

template <int R>
QDIFF_INLINE void dot_chunk_wide(const Rows* rows, int64_t quads, int64_t first, int64_t count, const Panel& panel,
                                 int64_t vectors, const int32_t* from, int64_t from_stride, int32_t* acc, int16_t* codes) {
  gather<R>(rows, quads, first, count, [&](int r, const uint8_t* row, int64_t some, int64_t done) {
    widen_quads(row, some, codes + r * kWideStride + 4 * done);
  });
  for (int64_t half = 0; half < 2 * vectors; ++half) {
    const int8_t* weight = panel.weight + half / 2 * panel.vector_step + half % 2 * 32 + first * panel.quad_step;
    wide_tile<R>(codes, count, weight, panel.quad_step, from + 8 * half, from_stride, acc + 8 * half);
  }
}

template <int R>
QDIFF_INLINE void dot_chunk_narrow(const Rows* rows, int64_t quads, int64_t first, int64_t count, const Panel& panel,
                                   int64_t vectors, int32_t* acc, uint8_t* codes) {
  gather<R>(rows, quads, first, count, [&](int r, const uint8_t* row, int64_t some, int64_t done) {
    copy_quads(row, some, codes + r * kNarrowStride + 4 * done);
  });
  for (int64_t v = 0; v < vectors; ++v) {
    const int8_t* weight = panel.weight + v * panel.vector_step + first * panel.quad_step;
    switch (panel.window) {
      case 1: narrow_tiles<R, 1>(codes, count, weight, panel.quad_step, acc + v * kLanes); break;
      case 2: narrow_tiles<R, 2>(codes, count, weight, panel.quad_step, acc + v * kLanes); break;
      case 4: narrow_tiles<R, 4>(codes, count, weight, panel.quad_step, acc + v * kLanes); break;
      default: narrow_tiles<R, kWidest>(codes, count, weight, panel.quad_step, acc + v * kLanes);
    }
  }
}

// acc[row][64] = start + sum over taps and quads of rows[tap][row] * weight; `vectors` of 16 channels are computed.
template <int R>
void dot_rows(const Rows* rows, int64_t taps, int64_t quads, const Panel& panel, int64_t vectors, const int32_t* start,
              int32_t* acc) {
  Gathered memory;
  if (panel.window) {
    for (int r = 0; r < R; ++r) std::memcpy(acc + r * kBlockChannels, start, size_t(vectors * kLanes) * sizeof(int32_t));
  }
  for (int64_t first = 0; first < taps * quads; first += kChunkQuads) {
    const int64_t count = std::min(kChunkQuads, taps * quads - first);
    if (panel.window) {
      dot_chunk_narrow<R>(rows, quads, first, count, panel, vectors, acc, memory.narrow);
    } else {
      dot_chunk_wide<R>(rows, quads, first, count, panel, vectors, first ? acc : start, first ? kBlockChannels : 0, acc,
                        memory.wide);
    }
  }
}

void dot_panel(const Rows* rows, int64_t taps, int64_t quads, const Panel& panel, int64_t row_count, int64_t vectors,
               const int32_t* start, int32_t* acc) {
  switch (row_count) {
    case 1: return dot_rows<1>(rows, taps, quads, panel, vectors, start, acc);
    case 2: return dot_rows<2>(rows, taps, quads, panel, vectors, start, acc);
    case 3: return dot_rows<3>(rows, taps, quads, panel, vectors, start, acc);
    case 4: return dot_rows<4>(rows, taps, quads, panel, vectors, start, acc);
    case 5: return dot_rows<5>(rows, taps, quads, panel, vectors, start, acc);
    default: return dot_rows<6>(rows, taps, quads, panel, vectors, start, acc);
  }
}

}  // namespace
}  // namespace qdiff
