// Attention for AVX2: six queries against all keys, then their probabilities, chunk by chunk, against the values. Results are
// those of attention_tile.h. Included after conv.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/attention.h"
#include "core/conv.h"

namespace qdiff {
namespace {

constexpr int64_t kMostDims = 512;
constexpr int64_t kMostKeys = 65536;  // |sum P v| <= 255 * 128 * keys must stay below 2^31
constexpr int64_t kHalf = 8;          // channels of a register of sums
constexpr int64_t kChunkKeys = 4 * kChunkQuads;
constexpr int64_t kQueryStride = kMostDims + 32;  // elements

inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Of one (batch, head): keys [16 keys][pair of dims][16][2] and what each one's score begins with, values
// [8 dims][quad of keys][8][4]. And of a thread: queries, scores and sums. In bytes.
struct AttentionLayout {
  int64_t pairs, key_vectors, key_quads, halves, blocks;
  int64_t starts, values, head_bytes;
  int64_t score_stride, peaks, scores, acc, codes, scratch_bytes;

  explicit AttentionLayout(const Attention& p) {
    pairs = ceil_div(p.head_dim, 2);
    key_vectors = ceil_div(p.key_len, kLanes);
    key_quads = ceil_div(p.key_len, 4);
    halves = ceil_div(p.head_dim, kHalf);
    blocks = ceil_div(p.head_dim, kBlockChannels);
    starts = key_vectors * pairs * 32;
    values = round_up(starts + key_vectors * kLanes * 4, 64);
    head_bytes = round_up(values + halves * key_quads * 32, 64);
    score_stride = key_vectors * kLanes + kLanes;  // elements; rows do not meet in the same lines of the first cache
    peaks = round_up(kTileRows * kQueryStride * 2, 64);
    scores = peaks + kTileRows * kLanes * 4;
    acc = scores + kTileRows * score_stride * 4;
    codes = acc + blocks * kTileRows * kBlockChannels * 4;
    scratch_bytes = codes + round_up(kTileRows * kWideStride * 2, 64);
  }
};

Plan attention_plan(const Attention& p) {
  const AttentionLayout l(p);
  const int64_t heads = p.batch * p.heads;
  return {heads, heads * ceil_div(p.query_len, kTileRows), kTileRows * p.key_len * p.head_dim * 2,
          size_t(heads * l.head_bytes), size_t(l.scratch_bytes)};
}

void pack_keys(const Attention& p, const AttentionLayout& l, const int8_t* from, int8_t* to, int32_t* starts) {
  for (int64_t key = 0; key < p.key_len; ++key) {
    const int8_t* codes = from + key * p.k_stride[2];
    int8_t* packed = to + key / kLanes * l.pairs * 32 + key % kLanes * 2;
    int32_t sum = 0;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      packed[d / 2 * 32 + d % 2] = codes[d];
      sum += codes[d];
    }
    starts[key] = -p.q_zero_point * sum;
  }
}

void pack_values(const Attention& p, const AttentionLayout& l, const int8_t* from, int8_t* to) {
  for (int64_t key = 0; key < p.key_len; ++key) {
    const int8_t* codes = from + key * p.v_stride[2];
    int8_t* packed = to + key / 4 * 32 + key % 4;
    for (int64_t d = 0; d < p.head_dim; ++d) packed[d / kHalf * l.key_quads * 32 + d % kHalf * 4] = codes[d];
  }
}

void attention_pack(const Attention& p, uint8_t* packed, int64_t begin, int64_t end) {
  const AttentionLayout l(p);
  for (int64_t head = begin; head < end; ++head) {
    const int64_t b = head / p.heads, h = head % p.heads;
    uint8_t* to = packed + head * l.head_bytes;
    std::memset(to, 0, size_t(l.head_bytes));
    pack_keys(p, l, p.k + b * p.k_stride[0] + h * p.k_stride[1], reinterpret_cast<int8_t*>(to),
              reinterpret_cast<int32_t*>(to + l.starts));
    pack_values(p, l, p.v + b * p.v_stride[0] + h * p.v_stride[1], reinterpret_cast<int8_t*>(to + l.values));
  }
}

// What one thread works on: up to 6 queries of a head.
struct Queries {
  int16_t* codes;  // [row][kQueryStride], zeros behind the last dim
  float* peaks;    // [row][16] of the largest scores
  float* scores;   // [row][score_stride]
  int32_t* acc;    // [block of dims][row][64]
  int16_t* probs;  // [row][kWideStride]
  const float* mask[kTileRows];
  float factor[kTileRows];

  Queries(uint8_t* scratch, const AttentionLayout& l)
      : codes(reinterpret_cast<int16_t*>(scratch)),
        peaks(reinterpret_cast<float*>(scratch + l.peaks)),
        scores(reinterpret_cast<float*>(scratch + l.scores)),
        acc(reinterpret_cast<int32_t*>(scratch + l.acc)),
        probs(reinterpret_cast<int16_t*>(scratch + l.codes)) {}
};

// first += products of a pair of one row's codes with two registers of weights.
QDIFF_INLINE void dot_pair(__m256i& first, __m256i& second, const int16_t* codes, const __m256i& a, const __m256i& b) {
  __m256i product, other;
  asm("vpbroadcastd %4, %2\n\t"
      "vpmaddwd %5, %2, %3\n\t"
      "vpmaddwd %6, %2, %2\n\t"
      "vpaddd %3, %0, %0\n\t"
      "vpaddd %2, %1, %1"
      : "+x"(first), "+x"(second), "=&x"(other), "=&x"(product)
      : "m"(*reinterpret_cast<const int32_t(*)>(codes)), "x"(a), "x"(b));
}

// Dot products of R queries with 16 keys: out[row * stride + key].
template <int R>
__attribute__((noinline)) void score_tile(const int16_t* codes, int64_t pairs, const int8_t* keys, const int32_t* starts,
                                          int32_t* out) {
  __m256i acc[R][2];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) acc[r][0] = load_ints(starts), acc[r][1] = load_ints(starts + 8);
  for (int64_t k = 0; k < pairs; ++k, keys += 32, codes += 2) {
    const __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(keys)));
    const __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(keys + 16)));
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) dot_pair(acc[r][0], acc[r][1], codes + r * kQueryStride, a, b);
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) store_ints(out + r * kLanes, acc[r][0]), store_ints(out + r * kLanes + 8, acc[r][1]);
}

// The larger of each; those of y where x is NaN.
QDIFF_INLINE Floats larger(const Floats& x, const Floats& y) {
  return by_parts<float>(x, y, [](__m256 a, __m256 b) { return _mm256_max_ps(a, b); });
}

// Scores against all keys, and the largest of each lane; behind the last key they are as if masked.
template <int R>
void find_scores(const Attention& p, const AttentionLayout& l, const uint8_t* head, const Queries& q) {
  const int32_t* starts = reinterpret_cast<const int32_t*>(head + l.starts);
  const Floats nothing = splat(-std::numeric_limits<float>::infinity());
  alignas(64) int32_t dots[R * kLanes];
  for (int r = 0; r < R; ++r) store(q.peaks + r * kLanes, nothing);
  for (int64_t v = 0; v < l.key_vectors; ++v) {
    const int64_t first = v * kLanes, count = std::min(kLanes, p.key_len - first);
    score_tile<R>(q.codes, l.pairs, reinterpret_cast<const int8_t*>(head) + v * l.pairs * 32, starts + first, dots);
    for (int r = 0; r < R; ++r) {
      Floats x = to_floats(load_raw<Ints>(dots + r * kLanes)) * p.score_scale;
      if (q.mask[r]) x = x + load_some(q.mask[r] + first, count);
      if (count < kLanes) x = select(lane_numbers() < int32_t(count), x, nothing);
      store(q.scores + r * l.score_stride + first, x);
      store(q.peaks + r * kLanes, larger(x, load(q.peaks + r * kLanes)));
    }
  }
}

QDIFF_INLINE float largest(const float* lanes) {
  float most = lanes[0];
  for (int64_t i = 1; i < kLanes; ++i) most = std::max(most, lanes[i]);
  return most;
}

QDIFF_INLINE void store_words(int16_t* to, const Ints& x) {
  const __m256i words = _mm256_packs_epi32(__m256i(x.at[0]), __m256i(x.at[1]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(words, 0xd8));
}

// Probability codes of `N` vectors of scores.
template <int N>
QDIFF_INLINE void find_codes(const float* scores, float peak, float levels, int16_t* to, Ints& sums) {
  // Below 2^-126 it is 0 as far as codes are concerned.
  const Group<N> e = exponential2(each<N>([&](int i) { return (load(scores + i * kLanes) - peak) * kLog2E; }));
#pragma GCC unroll 2
  for (int i = 0; i < N; ++i) {
    const Ints codes = nearest(e.at[i] * levels);
    sums += codes;
    store_words(to + i * kLanes, codes);
  }
}

// Those of one row for the `vectors` of keys from `scores` on; returns their sum.
QDIFF_INLINE int64_t find_row(const float* scores, float peak, float levels, int64_t vectors, int16_t* to) {
  Ints sums{};
  int64_t v = 0;
  for (; v + kGroup <= vectors; v += kGroup) find_codes<kGroup>(scores + v * kLanes, peak, levels, to + v * kLanes, sums);
  for (; v < vectors; ++v) find_codes<1>(scores + v * kLanes, peak, levels, to + v * kLanes, sums);
  alignas(64) int32_t each[kLanes];
  store_raw(each, sums);
  int64_t sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += each[i];
  return sum;
}

// Sums of values, weighted by probabilities, of R rows, and what makes numbers of them.
template <int R>
void find_sums(const Attention& p, const AttentionLayout& l, const uint8_t* head, Queries& q) {
  static constexpr int32_t kZeros[kHalf] = {};
  const int8_t* values = reinterpret_cast<const int8_t*>(head + l.values);
  int64_t sums[R] = {};
  float peaks[R];
  for (int r = 0; r < R; ++r) peaks[r] = largest(q.peaks + r * kLanes);
  for (int64_t first = 0; first < p.key_len; first += kChunkKeys) {
    const int64_t vectors = std::min(kChunkKeys / kLanes, l.key_vectors - first / kLanes);
    const int64_t quads = std::min(kChunkQuads, l.key_quads - first / 4);
    for (int r = 0; r < R; ++r) {
      int16_t* codes = q.probs + r * kWideStride;
      if (std::isinf(peaks[r])) {  // everything is masked
        std::memset(codes, 0, size_t(vectors * kLanes) * sizeof(int16_t));
        continue;
      }
      sums[r] += find_row(q.scores + r * l.score_stride + first, peaks[r], float(p.levels), vectors, codes);
    }
    for (int64_t half = 0; half < l.halves; ++half) {
      int32_t* acc = q.acc + half / kHalf * kTileRows * kBlockChannels + half % kHalf * kHalf;
      wide_tile<R>(q.probs, quads, values + (half * l.key_quads + first / 4) * 32, 32, first ? acc : kZeros,
                   first ? kBlockChannels : 0, acc);
    }
  }
  for (int r = 0; r < R; ++r) q.factor[r] = sums[r] == 0 ? 0.0f : p.v_scale / float(sums[r]);
}

void store_results(const Attention& p, const Queries& q, int64_t rows, const int64_t at) {
  with_output(p.out, p.out_type, p.quantizer, [&](const auto& out) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t d = 0; d < p.head_dim; d += kLanes) {
        const int32_t* acc = q.acc + (d / kBlockChannels * kTileRows + r) * kBlockChannels + d % kBlockChannels;
        const Floats x = to_floats(load_raw<Ints>(acc)) * q.factor[r];
        out.write(at + r * p.out_stride[2] + d, x, std::min(kLanes, p.head_dim - d));
      }
    }
  });
}

template <int R>
void attend_rows(const Attention& p, const AttentionLayout& l, const uint8_t* head, Queries& q) {
  find_scores<R>(p, l, head, q);
  find_sums<R>(p, l, head, q);
}

// Codes of `rows` queries from `row` on, widened, and where their masks are.
void load_queries(const Attention& p, const AttentionLayout& l, int64_t b, int64_t h, int64_t row, int64_t rows, Queries& q) {
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* from = p.q + b * p.q_stride[0] + h * p.q_stride[1] + (row + r) * p.q_stride[2];
    int16_t* to = q.codes + r * kQueryStride;
    to[2 * l.pairs - 1] = 0;
    for (int64_t d = 0; d < p.head_dim; ++d) to[d] = from[d];
    const int64_t mask = b * p.mask_stride[0] + h * p.mask_stride[1] + (row + r) * p.mask_stride[2];
    q.mask[r] = p.mask ? p.mask + mask : nullptr;
  }
}

void attention_attend(const Attention& p, const uint8_t* packed, uint8_t* scratch, int64_t begin, int64_t end) {
  const AttentionLayout l(p);
  const int64_t per_head = ceil_div(p.query_len, kTileRows);
  Queries q(scratch, l);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t head = task / per_head, b = head / p.heads, h = head % p.heads, row = task % per_head * kTileRows;
    const int64_t rows = std::min(kTileRows, p.query_len - row);
    const uint8_t* operands = packed + head * l.head_bytes;
    load_queries(p, l, b, h, row, rows, q);
    switch (rows) {
      case 1: attend_rows<1>(p, l, operands, q); break;
      case 2: attend_rows<2>(p, l, operands, q); break;
      case 3: attend_rows<3>(p, l, operands, q); break;
      case 4: attend_rows<4>(p, l, operands, q); break;
      case 5: attend_rows<5>(p, l, operands, q); break;
      default: attend_rows<6>(p, l, operands, q);
    }
    store_results(p, q, rows, b * p.out_stride[0] + h * p.out_stride[1] + row * p.out_stride[2]);
  }
}

}  // namespace
}  // namespace qdiff
