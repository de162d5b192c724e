// int8 attention for AVX-512 VNNI. Compiled with -mavx512f/bw/vl/dq/vnni; includes no torch header.
//
// For a block of query rows the whole row of int32 scores is kept in L2, so the softmax uses the true row
// maximum. Both products are the same register tile:
// 6 rows of unsigned bytes (broadcast four at a time) times up to 4 vectors of signed bytes.
//
// Scores lie in the order in which tiles write them and probabilities read them, and whoever comes next to a line has it
// fetched: a tile that writes into lines of L2 would otherwise wait as long again as it multiplies.

#include "core/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "isa/avx512.h"
#include "isa/probabilities_avx512.h"

namespace qdiff {
namespace {

constexpr int64_t kVectorBytes = 64;
constexpr int64_t kTileRows = 6;  // 6 x 4 accumulators + 4 operands + 1 broadcast fit in 32 registers
constexpr int64_t kTileVectors = 4;
constexpr int64_t kKeyBlock = kTileVectors * kLanes;
static_assert(kKeyBlock == kStretch);
constexpr int64_t kChunk = 512;                         // keys whose probabilities are held at a time (L1)
constexpr int64_t kProbStride = kChunk + kVectorBytes;  // off the 4 KiB aliasing distance
constexpr int64_t kMaxHeadDim = 512;
constexpr int64_t kQueryStride = kMaxHeadDim + kVectorBytes;
constexpr int64_t kMaxRows = 48;
constexpr int64_t kLinesAQuad = 3;  // of scores, fetched while a tile multiplies: heads of 32 dims have the next tile's all
constexpr int64_t kQuadsAhead = 4;  // of values, fetched while a tile multiplies: not all of a chunk stay in L1
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
//   values  [<=4 of head_dim/16 vectors][key_len/4][<=4 vectors][16][4 keys]    s8
struct Layout {
  int64_t key_vectors, score_keys, depth_quads, value_vectors, value_quads, rows, row_blocks;
  int64_t value_parts, least_vectors, more_parts;  // parts of values, vectors of each, and how many have one more
  int64_t bias_offset, values_offset, head_bytes;
  int64_t max_offset, sum_offset, query_offset, prob_offset, acc_offset, scratch_bytes;

  explicit Layout(const Attention& p) {
    key_vectors = ceil_div(p.key_len, kLanes);
    score_keys = round_up(p.key_len, kStretch);  // read in whole stretches
    depth_quads = ceil_div(p.head_dim, 4);
    value_vectors = ceil_div(p.head_dim, kLanes);
    value_parts = ceil_div(value_vectors, kTileVectors);
    least_vectors = value_vectors / std::max<int64_t>(value_parts, 1);  // heads may have no dims
    more_parts = value_vectors - value_parts * least_vectors;
    value_quads = ceil_div(p.key_len, 4);
    choose_rows(p);

    bias_offset = key_vectors * depth_quads * kVectorBytes;
    values_offset = bias_offset + key_vectors * kVectorBytes;
    head_bytes = values_offset + value_quads * value_vectors * kVectorBytes;

    max_offset = rows * score_keys * sizeof(int32_t);
    sum_offset = max_offset + rows * kVectorBytes;
    query_offset = sum_offset + rows * kVectorBytes;
    prob_offset = query_offset + rows * kQueryStride;
    acc_offset = prob_offset + rows * kProbStride;
    scratch_bytes = acc_offset + rows * value_vectors * kVectorBytes;
  }

  // First of the vectors of dims that a tile takes at once. Equal parts: 80 dims are 3 + 2 vectors, not 4 + 1, which would
  // leave the multipliers waiting.
  int64_t part_begin(int64_t part) const {
    return part * least_vectors + std::min(part, more_parts);
  }
  int64_t part_vectors(int64_t part) const { return part_begin(part + 1) - part_begin(part); }

  // Where the values of one quad of keys begin. Each part lies by itself: rows of all dims would be a power of two apart,
  // and few of them fit into the sets that they share in the first cache.
  int64_t values_at(int64_t part, int64_t quad) const {
    return values_offset + (value_quads * part_begin(part) + quad * part_vectors(part)) * kVectorBytes;
  }

 private:
  void choose_rows(const Attention& p) {
    const int64_t fit = kScoreBytes / (score_keys * int64_t{sizeof(int32_t)}) / kTileRows * kTileRows;
    const int64_t most = std::clamp(fit, kTileRows, kMaxRows);
    // Even blocks, so the last one is not nearly empty.
    row_blocks = ceil_div(p.query_len, most);
    rows = round_up(ceil_div(p.query_len, row_blocks), kTileRows);
    row_blocks = ceil_div(p.query_len, rows);
  }
};

struct Scratch {
  int32_t* scores;   // [score_keys/64][rows][64]; float after masking
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

inline __mmask64 bytes_below(int64_t count) { return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1; }

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

// Sixteen dims of four keys into one vector [16][4]; of keys that do not exist (null) zeros.
inline __m512i interleave_values(const int8_t* const (&key)[4], int64_t dim, __mmask16 dims) {
  __m128i row[4];
  for (int64_t j = 0; j < 4; ++j) {
    row[j] = key[j] ? _mm_maskz_loadu_epi8(dims, key[j] + dim) : _mm_setzero_si128();
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

// Values of one block of keys, in the order in which their probabilities are written.
void pack_values(const Attention& p, const Layout& l, const int8_t* v, int64_t block, uint8_t* head) {
  const int64_t first = block * kStretch, keys = std::min(kStretch, p.key_len - first);
  for (int64_t place = 0; place < keys; place += 4) {
    const int8_t* from[4];
    for (int64_t j = 0; j < 4; ++j) {
      const int64_t key = keys == kStretch ? key_at(place + j) : place + j;
      from[j] = key < keys ? v + (first + key) * p.v_stride[2] : nullptr;
    }
    for (int64_t part = 0; part < l.value_parts; ++part) {
      uint8_t* packed = head + l.values_at(part, (first + place) / 4);
      for (int64_t n = l.part_begin(part); n < l.part_begin(part + 1); ++n, packed += kVectorBytes) {
        _mm512_storeu_si512(packed, interleave_values(from, n * kLanes, lanes_below(p.head_dim - n * kLanes)));
      }
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

// acc[n] += dot products of four bytes and operand[n]. One piece of assembler: of single instructions GCC 12 copied half of a
// tile of 6 x 3 accumulators to other registers and back at every step, a quarter of its time.
template <int N>
QDIFF_INLINE void dot_row(__m512i (&acc)[N], const uint8_t* bytes, const __m512i (&operand)[N]) {
  using Quad = const int32_t __attribute__((may_alias, aligned(1)));
  const Quad& quad = *reinterpret_cast<const Quad*>(bytes);
  __m512i u8;
  if constexpr (N == 1) {
    asm("vpbroadcastd %2, %1\n\t"
        "vpdpbusd %3, %1, %0"
        : "+v"(acc[0]), "=&v"(u8)
        : "m"(quad), "v"(operand[0]));
  } else if constexpr (N == 2) {
    asm("vpbroadcastd %3, %2\n\t"
        "vpdpbusd %4, %2, %0\n\t"
        "vpdpbusd %5, %2, %1"
        : "+v"(acc[0]), "+v"(acc[1]), "=&v"(u8)
        : "m"(quad), "v"(operand[0]), "v"(operand[1]));
  } else if constexpr (N == 3) {
    asm("vpbroadcastd %4, %3\n\t"
        "vpdpbusd %5, %3, %0\n\t"
        "vpdpbusd %6, %3, %1\n\t"
        "vpdpbusd %7, %3, %2"
        : "+v"(acc[0]), "+v"(acc[1]), "+v"(acc[2]), "=&v"(u8)
        : "m"(quad), "v"(operand[0]), "v"(operand[1]), "v"(operand[2]));
  } else {
    asm("vpbroadcastd %5, %4\n\t"
        "vpdpbusd %6, %4, %0\n\t"
        "vpdpbusd %7, %4, %1\n\t"
        "vpdpbusd %8, %4, %2\n\t"
        "vpdpbusd %9, %4, %3"
        : "+v"(acc[0]), "+v"(acc[1]), "+v"(acc[2]), "+v"(acc[3]), "=&v"(u8)
        : "m"(quad), "v"(operand[0]), "v"(operand[1]), "v"(operand[2]), "v"(operand[3]));
  }
}

// acc[r][n] += sum over `quads` groups of four bytes of a[r] * b[n]; calls fetch(i) before each.
template <int N, typename Fetch>
QDIFF_INLINE void multiply(Tile<N>& acc, const uint8_t* a, int64_t a_stride, const uint8_t* b, int64_t quads,
                           const Fetch& fetch) {
  for (int64_t i = 0; i < quads; ++i) {
    fetch(i);
    __m512i operand[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) operand[n] = _mm512_loadu_si512(b + n * kVectorBytes);
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r) dot_row(acc[r], a + r * a_stride, operand);
    a += 4;
    b += N * kVectorBytes;
  }
}

// Scores of 6 * tiles queries against N*16 keys, [query][64], and the running maximum of each lane.
template <int N>
QDIFF_NOINLINE void score_tiles(const uint8_t* queries, int64_t tiles, const uint8_t* keys, const int32_t* bias,
                                int64_t quads, int32_t* scores, int32_t* row_max) {
  for (int64_t t = 0; t < tiles; ++t) {
    Tile<N> acc;
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const __m512i start = _mm512_loadu_si512(bias + n * kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < kTileRows; ++r) acc[r][n] = start;
    }
    const int32_t* next = scores + kTileRows * kStretch;
    multiply<N>(acc, queries, kQueryStride, keys, quads, [&](int64_t i) {
      if (i * kLinesAQuad >= kTileRows * kTileVectors) return;
#pragma GCC unroll 3
      for (int64_t line = 0; line < kLinesAQuad; ++line) __builtin_prefetch(next + line * kLanes, 1);
      next += kLinesAQuad * kLanes;
    });
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r) {
      __m512i largest = _mm512_loadu_si512(row_max + r * kLanes);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        _mm512_storeu_si512(scores + r * kStretch + n * kLanes, acc[r][n]);
        largest = _mm512_max_epi32(largest, acc[r][n]);
      }
      _mm512_storeu_si512(row_max + r * kLanes, largest);
    }
    queries += kTileRows * kQueryStride;
    scores += kTileRows * kStretch;
    row_max += kTileRows * kLanes;
  }
}

// acc[6][N*16] = start + probabilities of 6 rows times the values of 4 * quads keys.
template <int N>
QDIFF_NOINLINE void value_tile(const uint8_t* probs, const uint8_t* values, int64_t quads, const int32_t* start,
                               int64_t start_stride, int32_t* acc, int64_t acc_stride) {
  Tile<N> tile;
#pragma GCC unroll 6
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) tile[r][n] = _mm512_loadu_si512(start + r * start_stride + n * kLanes);
  }
  multiply<N>(tile, probs, kProbStride, values, quads, [&](int64_t i) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) __builtin_prefetch(values + ((i + kQuadsAhead) * N + n) * kVectorBytes);
  });
#pragma GCC unroll 6
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) _mm512_storeu_si512(acc + r * acc_stride + n * kLanes, tile[r][n]);
  }
}

template <typename... Args>
void score_tiles_of(int64_t vectors, Args... args) {
  switch (vectors) {
    case 1: return score_tiles<1>(args...);
    case 2: return score_tiles<2>(args...);
    case 3: return score_tiles<3>(args...);
    default: return score_tiles<4>(args...);
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
    for (int64_t d = 0; d < p.head_dim; d += kVectorBytes) {
      const int64_t dims = r < rows ? std::min(kVectorBytes, p.head_dim - d) : 0;
      _mm512_storeu_si512(to + d, _mm512_maskz_loadu_epi8(bytes_below(dims), q + r * p.q_stride[2] + d));
    }
  }
}

void compute_scores(const Layout& l, const uint8_t* head, int64_t tiles, Scratch& s) {
  std::fill_n(s.row_max, l.rows * kLanes, std::numeric_limits<int32_t>::min());
  const int32_t* bias = reinterpret_cast<const int32_t*>(head + l.bias_offset);
  for (int64_t first = 0; first < l.key_vectors; first += kTileVectors) {
    const int64_t vectors = std::min(kTileVectors, l.key_vectors - first);
    const uint8_t* keys = head + first * l.depth_quads * kVectorBytes;
    score_tiles_of(vectors, s.queries, tiles, keys, bias + first * kLanes, l.depth_quads,
                   s.scores + first * kLanes * l.rows, s.row_max);
  }
}

// Turns one row of integer scores into float scores plus mask, in place; returns the row maximum. Stretches of the row are
// `stride` elements apart.
float mask_row(int32_t* scores, int64_t stride, const float* mask, int64_t key_len, float scale) {
  const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  const __m512 factor = _mm512_set1_ps(scale);
  __m512 largest = lowest;
  for (int64_t j = 0; j < key_len; j += kLanes) {
    int32_t* at = scores + j / kStretch * stride + j % kStretch;
    const __mmask16 keys = lanes_below(key_len - j);
    const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(at)), factor);
    const __m512 score = _mm512_mask_add_ps(lowest, keys, product, _mm512_maskz_loadu_ps(keys, mask + j));
    _mm512_storeu_ps(reinterpret_cast<float*>(at), score);
    largest = _mm512_max_ps(largest, score);
  }
  return _mm512_reduce_max_ps(largest);
}

// Probability codes of one chunk of keys for every row of the block.
template <typename Softmax>
void compute_probabilities(const Softmax& softmax, const Layout& l, int64_t rows, int64_t first, int64_t keys, Scratch& s) {
  const RowBlock block{s.scores + first * l.rows, l.rows, rows, s.row_max, s.probs, kProbStride, s.row_sum};
  write_codes(softmax, block, keys);
}

void accumulate_values(const Layout& l, const uint8_t* head, int64_t tiles, int64_t first, int64_t keys, Scratch& s) {
  alignas(64) static constexpr int32_t kZeros[kTileVectors * kLanes] = {};
  const int64_t stride = l.value_vectors * kLanes;
  for (int64_t part = 0; part < l.value_parts; ++part) {
    const uint8_t* values = head + l.values_at(part, first / 4);
    int32_t* acc = s.acc + l.part_begin(part) * kLanes;
    for (int64_t r = 0; r < tiles * kTileRows; r += kTileRows, acc += kTileRows * stride) {
      value_tile_of(l.part_vectors(part), s.probs + r * kProbStride, values, ceil_div(keys, 4), first ? acc : kZeros,
                    first ? stride : 0, acc, stride);
    }
  }
}

void store_rows(const Attention& p, const Layout& l, int64_t rows, const Scratch& s, int64_t out_index) {
  with_output(p.out, p.out_type, p.quantizer, [&](const auto& out) {
    for (int64_t r = 0; r < rows; ++r) {
      const int32_t sum = _mm512_reduce_add_epi32(_mm512_loadu_si512(s.row_sum + r * kLanes));
      const float factor = sum == 0 ? 0.0f : p.v_scale / static_cast<float>(sum);
      const int32_t* acc = s.acc + r * l.value_vectors * kLanes;
      for (int64_t d = 0; d < p.head_dim; d += kLanes) {
        const Floats x = __builtin_convertvector(load_raw<Ints>(acc + d), Floats) * factor;
        out.write(out_index + r * p.out_stride[2] + d, x, std::min(kLanes, p.head_dim - d));
      }
    }
  });
}

// Leaves each row's maximum in the first lane of row_max (as float bits when there is a mask), as the softmax takes it, and
// sums of 0.
template <typename Softmax>
void finish_scores(const Softmax& softmax, const Attention& p, const Layout& l, int64_t rows, const float* mask, Scratch& s) {
  for (int64_t r = 0; r < rows; ++r) {
    int32_t* row_max = s.row_max + r * kLanes;
    if (mask) {
      const float top = mask_row(s.scores + r * kStretch, l.rows * kStretch, mask + r * p.mask_stride[2], p.key_len,
                                 p.score_scale);
      std::memcpy(row_max, &top, sizeof(top));
    } else {
      row_max[0] = _mm512_reduce_max_epi32(_mm512_loadu_si512(row_max));
    }
    softmax.take_peak(row_max);
    _mm512_storeu_si512(s.row_sum + r * kLanes, _mm512_setzero_si512());
  }
}

template <typename Softmax>
void attend_block(const Attention& p, const Layout& l, const Softmax& softmax, const uint8_t* head, int64_t b, int64_t h,
                  int64_t row, Scratch& s) {
  const int64_t rows = std::min(l.rows, p.query_len - row);
  const int64_t tiles = ceil_div(rows, kTileRows);
  load_queries(p, l, p.q + b * p.q_stride[0] + h * p.q_stride[1] + row * p.q_stride[2], rows, s.queries);
  compute_scores(l, head, tiles, s);
  const int64_t mask_index = b * p.mask_stride[0] + h * p.mask_stride[1] + row * p.mask_stride[2];
  finish_scores(softmax, p, l, rows, p.mask ? p.mask + mask_index : nullptr, s);

  for (int64_t first = 0; first < p.key_len; first += kChunk) {
    const int64_t keys = std::min(kChunk, p.key_len - first);
    compute_probabilities(softmax, l, rows, first, keys, s);
    accumulate_values(l, head, tiles, first, keys, s);
  }
  store_rows(p, l, rows, s, b * p.out_stride[0] + h * p.out_stride[1] + row * p.out_stride[2]);
}

template <typename Softmax>
void attend_with(Softmax softmax, const Attention& p, const uint8_t* packed, uint8_t* scratch, int64_t begin, int64_t end) {
  const Layout l(p);
  Scratch s(scratch, l);
  std::memset(s.probs, 0, l.rows * kProbStride);  // padded rows are multiplied too: keep them defined
  for (int64_t task = begin; task < end; ++task) {
    const int64_t head = task / l.row_blocks, row = task % l.row_blocks * l.rows;
    attend_block(p, l, softmax, packed + head * l.head_bytes, head / p.heads, head % p.heads, row, s);
  }
}

void attend(const Attention& p, const uint8_t* packed, uint8_t* scratch, int64_t begin, int64_t end) {
  const double scale = double(p.score_scale) * kLog2E;
  if (p.mask) return attend_with(FloatSoftmax(p.levels), p, packed, scratch, begin, end);
  if (FixedPoint::shifts_left(scale)) {
    return attend_with(FixedSoftmax<true>(scale, p.levels), p, packed, scratch, begin, end);
  }
  attend_with(FixedSoftmax<false>(scale, p.levels), p, packed, scratch, begin, end);
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
