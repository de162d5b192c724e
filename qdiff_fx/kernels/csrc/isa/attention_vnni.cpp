// int8 attention for AVX-512 VNNI. Compiled with -mavx512f/bw/vl/dq/vnni; includes no torch header.
//
// For a block of query rows the whole row of int32 scores is kept in L2, so the softmax uses the true row
// maximum. Both products are the same register tile:
// 6 rows of unsigned bytes (broadcast four at a time) times up to 4 vectors of signed bytes.

#include "core/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "isa/avx512.h"
#include "isa/probabilities_avx512.h"

// Tiles live apart from the code around them, so all 32 registers are theirs.
#define QDIFF_NOINLINE __attribute__((noinline))

namespace qdiff {
namespace {

constexpr int64_t kVectorBytes = 64;
constexpr int64_t kTileRows = 6;  // 6 x 4 accumulators + 4 operands + 1 broadcast fit in 32 registers
constexpr int64_t kTileVectors = 4;
constexpr int64_t kKeyBlock = kTileVectors * kLanes;
constexpr int64_t kChunk = 512;                         // keys whose probabilities are held at a time (L1)
constexpr int64_t kProbStride = kChunk + kVectorBytes;  // off the 4 KiB aliasing distance
constexpr int64_t kMaxHeadDim = 512;
constexpr int64_t kQueryStride = kMaxHeadDim + kVectorBytes;
constexpr int64_t kMaxRows = 48;
constexpr int64_t kScoreBytes = 448 * 1024;  // share of L2 for the scores of one block
// |sum P v| <= 255 * 128 * key_len must stay below 2^31.
constexpr int64_t kMaxKeyLen = 65536;
// Score of a key that does not exist: below any real one (|dot| <= 255 * 128 * 512), and its difference to
// a real one does not overflow.
constexpr int32_t kNoKey = -(1 << 30);

inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Sizes of the packed operands of one (batch, head) and of one thread's scratch.
//   keys    [key_len/64][head_dim/4][<=4 vectors][16 keys][4]    s8
//   bias    [key_len/16][16]    int32: -q_zero_point * sum_d k
//   values  [key_len/4][head_dim/16][16][4 keys]    s8
struct Layout {
  int64_t key_vectors, score_stride, depth_quads, value_vectors, value_quads, rows, row_blocks;
  int64_t bias_offset, values_offset, head_bytes;
  int64_t max_offset, sum_offset, query_offset, prob_offset, acc_offset, scratch_bytes;

  explicit Layout(const Attention& p) {
    key_vectors = ceil_div(p.key_len, kLanes);
    // Read in whole stretches; rows a power of two apart would share cache sets.
    score_stride = round_up(p.key_len, kStretch) + kLanes;
    depth_quads = ceil_div(p.head_dim, 4);
    value_vectors = ceil_div(p.head_dim, kLanes);
    value_quads = ceil_div(p.key_len, 4);
    choose_rows(p);

    bias_offset = key_vectors * depth_quads * kVectorBytes;
    values_offset = bias_offset + key_vectors * kVectorBytes;
    head_bytes = values_offset + value_quads * value_vectors * kVectorBytes;

    max_offset = rows * score_stride * sizeof(int32_t);
    sum_offset = max_offset + rows * kVectorBytes;
    query_offset = sum_offset + rows * kVectorBytes;
    prob_offset = query_offset + rows * kQueryStride;
    acc_offset = prob_offset + rows * kProbStride;
    scratch_bytes = acc_offset + rows * value_vectors * kVectorBytes;
  }

 private:
  void choose_rows(const Attention& p) {
    const int64_t fit = kScoreBytes / (score_stride * int64_t{sizeof(int32_t)}) / kTileRows * kTileRows;
    const int64_t most = std::clamp(fit, kTileRows, kMaxRows);
    // Even blocks, so the last one is not nearly empty.
    row_blocks = ceil_div(p.query_len, most);
    rows = round_up(ceil_div(p.query_len, row_blocks), kTileRows);
    row_blocks = ceil_div(p.query_len, rows);
  }
};

struct Scratch {
  int32_t* scores;   // [rows][score_stride]; float after masking
  int32_t* row_max;  // [rows][16]
  int32_t* row_sum;  // [rows][16]
  uint8_t* queries;  // [rows][kQueryStride]
  uint8_t* probs;    // [rows][kProbStride]
  int32_t* acc;      // [rows][value_vectors * 16]

  Scratch(uint8_t* base, const Layout& l)
      : scores(reinterpret_cast<int32_t*>(base)),
        row_max(reinterpret_cast<int32_t*>(base + l.max_offset)),
        row_sum(reinterpret_cast<int32_t*>(base + l.sum_offset)),
        queries(base + l.query_offset),
        probs(base + l.prob_offset),
        acc(reinterpret_cast<int32_t*>(base + l.acc_offset)) {}
};

inline __mmask16 lanes_below(int64_t count) {
  return count >= kLanes ? __mmask16(0xffff) : __mmask16((1u << count) - 1);
}

// ---------------------------------------------------------------------------------------------- packing

// Sixteen keys into [depth_quads][stride vectors][16][4], and their correction for the query zero point.
void pack_key_vector(const int8_t* k, int64_t token_stride, int64_t keys, int64_t head_dim,
                     int32_t zero_point, int64_t stride, int8_t* packed, int32_t* bias) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sums = _mm512_setzero_si512();
  for (int64_t d = 0; d < head_dim; d += 4) {
    const int64_t bytes = std::min<int64_t>(4, head_dim - d);
    alignas(64) int32_t quads[kLanes] = {};
    if (bytes == 4) {
      for (int64_t j = 0; j < keys; ++j) std::memcpy(&quads[j], k + j * token_stride + d, 4);
    } else {
      for (int64_t j = 0; j < keys; ++j) std::memcpy(&quads[j], k + j * token_stride + d, bytes);
    }
    const __m512i vector = _mm512_load_si512(quads);
    _mm512_storeu_si512(packed + (d / 4) * stride * kVectorBytes, vector);
    sums = _mm512_dpbusd_epi32(sums, ones, vector);
  }
  const __m512i corrected = _mm512_mullo_epi32(sums, _mm512_set1_epi32(-zero_point));
  _mm512_storeu_si512(bias, _mm512_mask_mov_epi32(_mm512_set1_epi32(kNoKey), lanes_below(keys), corrected));
}

// Four keys x 16 dims of v into one vector [16][4].
inline __m512i interleave_values(const int8_t* v, int64_t token_stride, int64_t keys, __mmask16 dims) {
  __m128i row[4];
  for (int64_t j = 0; j < 4; ++j) {
    row[j] = j < keys ? _mm_maskz_loadu_epi8(dims, v + j * token_stride) : _mm_setzero_si128();
  }
  const __m128i low01 = _mm_unpacklo_epi8(row[0], row[1]), high01 = _mm_unpackhi_epi8(row[0], row[1]);
  const __m128i low23 = _mm_unpacklo_epi8(row[2], row[3]), high23 = _mm_unpackhi_epi8(row[2], row[3]);
  __m512i out = _mm512_castsi128_si512(_mm_unpacklo_epi16(low01, low23));
  out = _mm512_inserti32x4(out, _mm_unpackhi_epi16(low01, low23), 1);
  out = _mm512_inserti32x4(out, _mm_unpacklo_epi16(high01, high23), 2);
  return _mm512_inserti32x4(out, _mm_unpackhi_epi16(high01, high23), 3);
}

void pack_keys(const Attention& p, const Layout& l, const int8_t* k, int64_t block, uint8_t* head) {
  const int64_t first = block * kTileVectors;
  const int64_t vectors = std::min(kTileVectors, l.key_vectors - first);
  int8_t* packed = reinterpret_cast<int8_t*>(head + first * l.depth_quads * kVectorBytes);
  int32_t* bias = reinterpret_cast<int32_t*>(head + l.bias_offset) + first * kLanes;
  for (int64_t n = 0; n < vectors; ++n) {
    const int64_t key = (first + n) * kLanes;
    pack_key_vector(k + key * p.k_stride[2], p.k_stride[2], std::min(kLanes, p.key_len - key), p.head_dim,
                    p.q_zero_point, vectors, packed + n * kVectorBytes, bias + n * kLanes);
  }
}

void pack_values(const Attention& p, const Layout& l, const int8_t* v, int64_t block, uint8_t* head) {
  const int64_t quads_end = std::min(l.value_quads, (block + 1) * (kKeyBlock / 4));
  for (int64_t quad = block * (kKeyBlock / 4); quad < quads_end; ++quad) {
    uint8_t* packed = head + l.values_offset + quad * l.value_vectors * kVectorBytes;
    const int64_t keys = std::min<int64_t>(4, p.key_len - quad * 4);
    for (int64_t n = 0; n < l.value_vectors; ++n) {
      const int8_t* from = v + quad * 4 * p.v_stride[2] + n * kLanes;
      const __mmask16 dims = lanes_below(p.head_dim - n * kLanes);
      _mm512_storeu_si512(packed + n * kVectorBytes, interleave_values(from, p.v_stride[2], keys, dims));
    }
  }
}

void pack(const Attention& p, uint8_t* packed, int64_t begin, int64_t end) {
  const Layout l(p);
  const int64_t blocks = ceil_div(p.key_len, kKeyBlock);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t head = task / blocks, block = task % blocks;
    const int64_t b = head / p.heads, h = head % p.heads;
    uint8_t* to = packed + head * l.head_bytes;
    pack_keys(p, l, p.k + b * p.k_stride[0] + h * p.k_stride[1], block, to);
    pack_values(p, l, p.v + b * p.v_stride[0] + h * p.v_stride[1], block, to);
  }
}

// --------------------------------------------------------------------------------------- register tiles

template <int N>
using Tile = __m512i[kTileRows][N];

// acc[r][n] += sum over `quads` groups of four bytes of a[r] * b[n].
template <int N>
QDIFF_INLINE void multiply(Tile<N>& acc, const uint8_t* a, int64_t a_stride, const uint8_t* b,
                           int64_t b_stride, int64_t quads) {
  for (int64_t i = 0; i < quads; ++i) {
    __m512i operand[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) operand[n] = _mm512_loadu_si512(b + n * kVectorBytes);
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r) {
      const __m512i quad = broadcast_quad(a + r * a_stride);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) dot_accumulate(acc[r][n], quad, operand[n]);
    }
    a += 4;
    b += b_stride;
  }
}

// Scores of 6 queries against N*16 keys, and the running maximum of each lane.
template <int N>
QDIFF_NOINLINE void score_tile(const uint8_t* queries, const uint8_t* keys, const int32_t* bias,
                               int64_t quads, int32_t* scores, int64_t score_stride, int32_t* row_max) {
  Tile<N> acc;
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
    const __m512i start = _mm512_loadu_si512(bias + n * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r) acc[r][n] = start;
  }
  multiply<N>(acc, queries, kQueryStride, keys, N * kVectorBytes, quads);
#pragma GCC unroll 6
  for (int r = 0; r < kTileRows; ++r) {
    __m512i largest = _mm512_loadu_si512(row_max + r * kLanes);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      _mm512_storeu_si512(scores + r * score_stride + n * kLanes, acc[r][n]);
      largest = _mm512_max_epi32(largest, acc[r][n]);
    }
    _mm512_storeu_si512(row_max + r * kLanes, largest);
  }
}

// acc[6][N*16] += probabilities of 6 rows times the values of 4 * quads keys.
template <int N>
QDIFF_NOINLINE void value_tile(const uint8_t* probs, const uint8_t* values, int64_t value_stride,
                               int64_t quads, int32_t* acc, int64_t acc_stride) {
  Tile<N> tile;
#pragma GCC unroll 6
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) tile[r][n] = _mm512_loadu_si512(acc + r * acc_stride + n * kLanes);
  }
  multiply<N>(tile, probs, kProbStride, values, value_stride, quads);
#pragma GCC unroll 6
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) _mm512_storeu_si512(acc + r * acc_stride + n * kLanes, tile[r][n]);
  }
}

template <typename... Args>
void score_tile_of(int64_t vectors, Args... args) {
  switch (vectors) {
    case 1: return score_tile<1>(args...);
    case 2: return score_tile<2>(args...);
    case 3: return score_tile<3>(args...);
    default: return score_tile<4>(args...);
  }
}

template <typename... Args>
void value_tile_of(int64_t vectors, Args... args) {
  switch (vectors) {
    case 1: return value_tile<1>(args...);
    case 2: return value_tile<2>(args...);
    case 3: return value_tile<3>(args...);
    default: return value_tile<4>(args...);
  }
}

// ---------------------------------------------------------------------------------------- one row block

// Copies the block's queries, padding dims and rows with zeros (padded rows are computed and thrown away).
void load_queries(const Attention& p, const Layout& l, const uint8_t* q, int64_t rows, uint8_t* to) {
  for (int64_t r = 0; r < l.rows; ++r, to += kQueryStride) {
    if (r >= rows) {
      std::memset(to, 0, l.depth_quads * 4);
      continue;
    }
    std::memcpy(to, q + r * p.q_stride[2], p.head_dim);
    std::memset(to + p.head_dim, 0, l.depth_quads * 4 - p.head_dim);
  }
}

void compute_scores(const Layout& l, const uint8_t* head, int64_t tiles, Scratch& s) {
  std::fill_n(s.row_max, l.rows * kLanes, std::numeric_limits<int32_t>::min());
  const int32_t* bias = reinterpret_cast<const int32_t*>(head + l.bias_offset);
  for (int64_t first = 0; first < l.key_vectors; first += kTileVectors) {
    const int64_t vectors = std::min(kTileVectors, l.key_vectors - first);
    const uint8_t* keys = head + first * l.depth_quads * kVectorBytes;
    for (int64_t r = 0; r < tiles * kTileRows; r += kTileRows) {
      score_tile_of(vectors, s.queries + r * kQueryStride, keys, bias + first * kLanes, l.depth_quads,
                    s.scores + r * l.score_stride + first * kLanes, l.score_stride, s.row_max + r * kLanes);
    }
  }
}

// Turns one row of integer scores into float scores plus mask, in place; returns the row maximum.
float mask_row(int32_t* scores, const float* mask, int64_t key_len, float scale) {
  const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  const __m512 factor = _mm512_set1_ps(scale);
  __m512 largest = lowest;
  for (int64_t j = 0; j < key_len; j += kLanes) {
    const __mmask16 keys = lanes_below(key_len - j);
    const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(scores + j)), factor);
    const __m512 score = _mm512_mask_add_ps(lowest, keys, product, _mm512_maskz_loadu_ps(keys, mask + j));
    _mm512_storeu_ps(reinterpret_cast<float*>(scores + j), score);
    largest = _mm512_max_ps(largest, score);
  }
  return _mm512_reduce_max_ps(largest);
}

// Both ways from scores to probability codes; the one with floats is for scores that a mask was added to.
struct Softmax {
  FixedSoftmax fixed;
  FloatSoftmax masked;

  explicit Softmax(const Attention& p) : fixed(double(p.score_scale) * kLog2E, p.levels), masked(p.levels) {}
};

// Probability codes of one chunk of keys for every row of the block.
void compute_probabilities(const Attention& p, Softmax& softmax, const Layout& l, int64_t rows, int64_t first, int64_t keys,
                           Scratch& s) {
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t* scores = s.scores + r * l.score_stride + first;
    uint8_t* probs = s.probs + r * kProbStride;
    int32_t* row_sum = s.row_sum + r * kLanes;
    if (!p.mask) {
      softmax.fixed.set_peak(s.row_max[r * kLanes]);
      probability_row(softmax.fixed, scores, keys, probs, row_sum);
      continue;
    }
    float peak;
    std::memcpy(&peak, &s.row_max[r * kLanes], sizeof(peak));
    if (std::isinf(peak)) {  // every key is hidden
      std::memset(probs, 0, round_up(keys, 4));
      continue;
    }
    softmax.masked.set_peak(peak);
    probability_row(softmax.masked, scores, keys, probs, row_sum);
  }
}

void accumulate_values(const Layout& l, const uint8_t* head, int64_t tiles, int64_t first, int64_t keys,
                       Scratch& s) {
  const int64_t stride = l.value_vectors * kVectorBytes;
  const uint8_t* values = head + l.values_offset + first / 4 * stride;
  // Equal parts: 80 dims are 3 + 2 vectors, not 4 + 1, which would leave the multipliers waiting.
  const int64_t parts = ceil_div(l.value_vectors, kTileVectors);
  int64_t begin = 0;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t vectors = ceil_div(l.value_vectors - begin, parts - part);
    for (int64_t r = 0; r < tiles * kTileRows; r += kTileRows) {
      value_tile_of(vectors, s.probs + r * kProbStride, values + begin * kVectorBytes, stride,
                    ceil_div(keys, 4), s.acc + (r * l.value_vectors + begin) * kLanes,
                    l.value_vectors * kLanes);
    }
    begin += vectors;
  }
}

void store_row(const Attention& p, const Layout& l, const int32_t* acc, int32_t sum, int64_t out_index) {
  const float factor = sum == 0 ? 0.0f : p.v_scale / static_cast<float>(sum);
  with_output(p.out, p.out_type, p.quantizer, [&](const auto& out) {
    for (int64_t d = 0; d < p.head_dim; d += kLanes) {
      const Floats x = __builtin_convertvector(load_raw<Ints>(acc + d), Floats) * factor;
      out.write(out_index + d, x, std::min(kLanes, p.head_dim - d));
    }
  });
}

// Leaves each row's maximum in the first lane of row_max (as float bits when there is a mask).
void finish_scores(const Attention& p, const Layout& l, int64_t rows, const float* mask, Scratch& s) {
  for (int64_t r = 0; r < rows; ++r) {
    int32_t* row_max = s.row_max + r * kLanes;
    if (mask) {
      const float top =
          mask_row(s.scores + r * l.score_stride, mask + r * p.mask_stride[2], p.key_len, p.score_scale);
      std::memcpy(row_max, &top, sizeof(top));
    } else {
      row_max[0] = _mm512_reduce_max_epi32(_mm512_loadu_si512(row_max));
    }
  }
}

void attend_block(const Attention& p, const Layout& l, Softmax& softmax, const uint8_t* head, int64_t b, int64_t h,
                  int64_t row, Scratch& s) {
  const int64_t rows = std::min(l.rows, p.query_len - row);
  const int64_t tiles = ceil_div(rows, kTileRows);
  load_queries(p, l, p.q + b * p.q_stride[0] + h * p.q_stride[1] + row * p.q_stride[2], rows, s.queries);
  compute_scores(l, head, tiles, s);
  const int64_t mask_index = b * p.mask_stride[0] + h * p.mask_stride[1] + row * p.mask_stride[2];
  finish_scores(p, l, rows, p.mask ? p.mask + mask_index : nullptr, s);

  std::memset(s.row_sum, 0, l.rows * kVectorBytes);
  std::memset(s.acc, 0, l.rows * l.value_vectors * kVectorBytes);
  for (int64_t first = 0; first < p.key_len; first += kChunk) {
    const int64_t keys = std::min(kChunk, p.key_len - first);
    compute_probabilities(p, softmax, l, rows, first, keys, s);
    accumulate_values(l, head, tiles, first, keys, s);
  }
  const int64_t out = b * p.out_stride[0] + h * p.out_stride[1] + row * p.out_stride[2];
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t sum = _mm512_reduce_add_epi32(_mm512_loadu_si512(s.row_sum + r * kLanes));
    store_row(p, l, s.acc + r * l.value_vectors * kLanes, sum, out + r * p.out_stride[2]);
  }
}

void attend(const Attention& p, const uint8_t* packed, uint8_t* scratch, int64_t begin, int64_t end) {
  const Layout l(p);
  Scratch s(scratch, l);
  Softmax softmax(p);
  std::memset(s.probs, 0, l.rows * kProbStride);  // padded rows are multiplied too: keep them defined
  for (int64_t task = begin; task < end; ++task) {
    const int64_t head = task / l.row_blocks, row = task % l.row_blocks * l.rows;
    attend_block(p, l, softmax, packed + head * l.head_bytes, head / p.heads, head % p.heads, row, s);
  }
}

Plan plan(const Attention& p) {
  const Layout l(p);
  const int64_t heads = p.batch * p.heads;
  Plan plan;
  plan.pack_tasks = heads * ceil_div(p.key_len, kKeyBlock);
  plan.attend_tasks = heads * l.row_blocks;
  plan.attend_macs = 2 * l.rows * p.key_len * p.head_dim;
  plan.packed_bytes = heads * l.head_bytes;
  plan.scratch_bytes = round_up(l.scratch_bytes, kVectorBytes);
  return plan;
}

}  // namespace

const Kernel kVnniAttention = {"avx512_vnni", kMaxHeadDim, kMaxKeyLen, 255, plan, pack, attend};

}  // namespace qdiff
