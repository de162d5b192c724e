// A convolution of every channel by itself: no sum over channels, so no dot products.
#pragma once

// conv.h includes this once a tile and its end are known.

namespace qdiff {
namespace {

// Sums of as many channels as a register holds, and weights of them as they are multiplied. Compilers widen bytes one by one
// where they are not told how; loops over more bytes than that they understand.
#if defined(__AVX512F__)
using Sums = int32_t __attribute__((vector_size(64)));
using Factors = Sums;
QDIFF_INLINE Factors factors(const int8_t* from) {
  return Factors(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
QDIFF_INLINE void add_products(Sums& sums, const uint8_t* codes, const Factors& weights) {
  sums += Sums(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)))) * weights;
}
#elif defined(__AVX2__)
using Sums = int32_t __attribute__((vector_size(32)));
using Factors = Sums;
QDIFF_INLINE Factors factors(const int8_t* from) { return Factors(_mm256_cvtepi8_epi32(_mm_loadu_si64(from))); }
QDIFF_INLINE void add_products(Sums& sums, const uint8_t* codes, const Factors& weights) {
  sums += Sums(_mm256_cvtepu8_epi32(_mm_loadu_si64(codes))) * weights;
}
#else
struct Sums { int32_t lane[16]; };
struct Factors { int16_t lane[16]; };
QDIFF_INLINE Factors factors(const int8_t* from) {
  Factors wide;
  for (int64_t i = 0; i < 16; ++i) wide.lane[i] = from[i];
  return wide;
}
QDIFF_INLINE void add_products(Sums& sums, const uint8_t* codes, const Factors& weights) {
  for (int64_t i = 0; i < 16; ++i) sums.lane[i] += int32_t(int16_t(codes[i])) * weights.lane[i];
}
#endif
constexpr int64_t kWide = sizeof(Sums) / sizeof(int32_t);

// The sum over all taps, of `kWide` channels from `c`, which is the `lane`th of its block.
QDIFF_INLINE void sum_taps(const Conv& p, const Rows* rows, int64_t c, int64_t lane, Tile& tile) {
  const ConvSource& s = p.sources[0];
  Sums sums[kTileRows];
#pragma GCC unroll 6
  for (int64_t r = 0; r < kTileRows; ++r) std::memcpy(&sums[r], s.start + c, sizeof(Sums));
  for (int64_t t = 0; t < p.kernel_h * p.kernel_w; ++t) {
    const Factors weights = factors(s.weight + t * p.out_channels + c);
#pragma GCC unroll 6
    for (int64_t r = 0; r < kTileRows; ++r) add_products(sums[r], rows[t][r] + c, weights);
  }
#pragma GCC unroll 6
  for (int64_t r = 0; r < kTileRows; ++r) std::memcpy(tile.acc + r * kBlockChannels + lane, &sums[r], sizeof(Sums));
}

// The same of the last channels, fewer than that: what lies behind them is nobody's to read.
QDIFF_INLINE void sum_last_taps(const Conv& p, const Rows* rows, int64_t c, int64_t lane, int64_t count, Tile& tile) {
  const ConvSource& s = p.sources[0];
  for (int64_t r = 0; r < kTileRows; ++r) {
    for (int64_t i = 0; i < count; ++i) {
      int32_t sum = s.start[c + i];
      for (int64_t t = 0; t < p.kernel_h * p.kernel_w; ++t) {
        sum += int32_t(rows[t][r][c + i]) * s.weight[t * p.out_channels + c + i];
      }
      tile.acc[r * kBlockChannels + lane + i] = sum;
    }
  }
}

QDIFF_INLINE void depthwise_tile(const Conv& p, const Rows* rows, const Place& at, Tile& tile) {
  fetch_ahead(p, at);
  int64_t lane = 0;
  for (; lane + kWide <= at.channels; lane += kWide) sum_taps(p, rows, at.channel + lane, lane, tile);
  if (lane < at.channels) sum_last_taps(p, rows, at.channel + lane, lane, at.channels - lane, tile);
  finish_tile(p, p.sources[0], false, tile, at);
}

// One source, whose weights are signed bytes [tap][channel].
void depthwise(const Conv& p, Tasks& tasks) {
  int64_t begin, end;
  if (!tasks.take(begin, end)) return;
  Places places(p);
  Tile tile;
  const int64_t taps = p.kernel_h * p.kernel_w, pixels = pixel_count(p);
  constexpr int64_t kOfTask = kTileRows * kTilesPerTask;
  do {
    const int64_t last = std::min(pixels, end * kOfTask);
    Position at(begin * kOfTask, p.out_w, p.out_h);
    for (int64_t first = begin * kOfTask; first < last; first += kTileRows, at.advance(kTileRows, p.out_w, p.out_h)) {
      const int64_t count = std::min(kTileRows, last - first);
      Rows* rows = places.of(p, 0);
      find_rows(p, p.sources[0], at, count, rows);
      for (int64_t t = 0; t < taps; ++t) {
        for (int64_t r = count; r < kTileRows; ++r) rows[t][r] = rows[t][0];  // computed with the others, never written
      }
      for (int64_t block = 0; block < blocks_of(p); ++block) depthwise_tile(p, rows, place_of(p, first, last, block), tile);
    }
  } while (tasks.take(begin, end));
}

}  // namespace
}  // namespace qdiff
