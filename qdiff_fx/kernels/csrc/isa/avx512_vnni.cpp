// Integer kernels for AVX-512 VNNI.

#include "core/kernels.h"

#define QDIFF_READS_NIBBLES 1

#include "isa/avx512.h"
#include "core/adaround_step.h"
#include "core/conv.h"
#include "core/feedback.h"
#include "core/gram.h"
#include "core/histogram.h"
#include "core/nearest_codes.h"
#include "core/range_errors.h"
#include "core/norm.h"
#include "core/pointwise.h"
#include "core/winograd.h"

namespace qdiff {
namespace {

// Weights of one byte.
struct WholeBytes {
  static constexpr int kShift = 0;  // sums are 2^kShift times too large

  template <int V>
  QDIFF_INLINE static const int8_t* load(const int8_t* weight, __m512i (&operand)[V]) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) operand[v] = _mm512_loadu_si512(weight + v * kVectorBytes);
    return weight + V * kVectorBytes;
  }
};

// Two weights to a byte. A nibble at the upper end of a byte is 16 times its code: so no sign has to be extended, and what
// is left to do is done by ports that the dot products do not use.
struct Nibbles {
  static constexpr int kShift = 4;

  template <int V>
  QDIFF_INLINE static const int8_t* load(const int8_t* weight, __m512i (&operand)[V]) {
    const __m512i upper = _mm512_set1_epi8(int8_t(0xf0));
#pragma GCC unroll 2
    for (int v = 0; v < V; v += 2) {
      const __m512i pair = _mm512_loadu_si512(weight + v / 2 * kVectorBytes);
      operand[v] = _mm512_and_si512(_mm512_slli_epi16(pair, 4), upper);
      if (v + 1 < V) operand[v + 1] = _mm512_and_si512(pair, upper);
    }
    return weight + nibble_bytes(V);
  }
};

// Kept apart from the code around it, so all 32 registers are its own.
template <typename Codes, int R, int V>
__attribute__((noinline)) void tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight,
                                    const int32_t* start, int32_t* out) {
  __m512i acc[R][V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) acc[r][v] = _mm512_slli_epi32(_mm512_loadu_si512(start + v * kLanes), Codes::kShift);
  }
  for (int64_t t = 0; t < taps; ++t) {
    const uint8_t* from[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) from[r] = rows[t][r];
    for (int64_t k = 0; k < quads; ++k) {
      __m512i operand[V];
      weight = Codes::load(weight, operand);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const __m512i quad = broadcast_quad(from[r] + 4 * k);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) dot_accumulate(acc[r][v], quad, operand[v]);
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      _mm512_storeu_si512(out + r * kBlockChannels + v * kLanes, _mm512_srai_epi32(acc[r][v], Codes::kShift));
    }
  }
}

template <typename Codes, int R, typename... Arguments>
QDIFF_INLINE void tile_of(int64_t vectors, Arguments... arguments) {
  switch (vectors) {
    case 1: return tile<Codes, R, 1>(arguments...);
    case 2: return tile<Codes, R, 2>(arguments...);
    case 3: return tile<Codes, R, 3>(arguments...);
    default: return tile<Codes, R, 4>(arguments...);
  }
}

template <typename Codes, typename... Arguments>
QDIFF_INLINE void tile_of_rows(int64_t row_count, Arguments... arguments) {
  switch (row_count) {
    case 1: return tile_of<Codes, 1>(arguments...);
    case 2: return tile_of<Codes, 2>(arguments...);
    case 3: return tile_of<Codes, 3>(arguments...);
    case 4: return tile_of<Codes, 4>(arguments...);
    case 5: return tile_of<Codes, 5>(arguments...);
    default: return tile_of<Codes, 6>(arguments...);
  }
}

void dot_tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t row_count,
              int64_t vectors, const int32_t* start, int32_t* acc) {
  tile_of_rows<WholeBytes>(row_count, vectors, rows, taps, quads, weight, start, acc);
}

void dot_tile_of_nibbles(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t row_count,
                         int64_t vectors, const int32_t* start, int32_t* acc) {
  tile_of_rows<Nibbles>(row_count, vectors, rows, taps, quads, weight, start, acc);
}

template <int R, int V>
__attribute__((noinline)) void multiply_rows(const int16_t* a, int64_t a_stride, const int16_t* b, int64_t pairs, int32_t* m,
                                             bool add, Ahead ahead) {
  __m512i acc[R][V];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      acc[r][v] = add ? _mm512_loadu_si512(m + r * kPanel + v * kLanes) : _mm512_setzero_si512();
    }
  }
  const int32_t* next = m + R * kPanel;
  for (int64_t k = 0; k < pairs; k += 2, ahead.inputs += 64, ahead.weights += 64) {
    __builtin_prefetch(ahead.inputs);
    __builtin_prefetch(ahead.weights);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, a += 2, b += 2 * kPanel, next += kLanes) {
      __builtin_prefetch(next);
      __m512i operand[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) operand[v] = _mm512_loadu_si512(b + v * 2 * kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const __m512i pair = broadcast_quad(reinterpret_cast<const uint8_t*>(a + r * a_stride));
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) dot_pairs(acc[r][v], pair, operand[v]);
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) _mm512_storeu_si512(m + r * kPanel + v * kLanes, acc[r][v]);
  }
}

template <int R, typename... Arguments>
QDIFF_INLINE void multiply_vectors(int64_t vectors, Arguments... arguments) {
  switch (vectors) {
    case 1: return multiply_rows<R, 1>(arguments...);
    case 2: return multiply_rows<R, 2>(arguments...);
    case 3: return multiply_rows<R, 3>(arguments...);
    default: return multiply_rows<R, 4>(arguments...);
  }
}

void multiply_pairs(const int16_t* a, int64_t a_stride, int64_t rows, const int16_t* b, int64_t pairs, int64_t vectors, int32_t* m,
                    bool add, Ahead ahead) {
  switch (rows) {
    case 1: return multiply_vectors<1>(vectors, a, a_stride, b, pairs, m, add, ahead);
    case 2: return multiply_vectors<2>(vectors, a, a_stride, b, pairs, m, add, ahead);
    case 3: return multiply_vectors<3>(vectors, a, a_stride, b, pairs, m, add, ahead);
    case 4: return multiply_vectors<4>(vectors, a, a_stride, b, pairs, m, add, ahead);
    case 5: return multiply_vectors<5>(vectors, a, a_stride, b, pairs, m, add, ahead);
    default: return multiply_vectors<6>(vectors, a, a_stride, b, pairs, m, add, ahead);
  }
}

const Rates kRates = {108, 108, 54, 8, 8, 1.2, 8};

}  // namespace

const Kernels kKernels = {"avx512_vnni", kCodeOffset,     conv_tasks,      conv,
                          &kWinograd,    norm_splits,     group_norm,      layer_norm,
                          pointwise,     &kVnniAttention, &kSecondMoments,
                          nearest_codes, histogram,   round_with_feedback,
                          adaround_step, range_errors};

}  // namespace qdiff
