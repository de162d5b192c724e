// Products of 16-bit pairs for Winograd's algorithm where a register has 256 bits. An instruction set defines `dot_pairs` and
// includes this after winograd.h.
#pragma once

#include <immintrin.h>

#include "core/winograd.h"

namespace qdiff {
namespace {

// acc += dot products of pairs of 16-bit numbers; sums wrap.
void dot_pairs(__m256i& acc, const __m256i& x, const __m256i& y);

// Sixteen channels.
template <int R>
__attribute__((noinline)) void multiply_rows(const int16_t* a, int64_t a_stride, const int16_t* b, int64_t pairs, int32_t* m,
                                             bool add, const char* ahead) {
  const auto vector = [](auto* at) { return reinterpret_cast<__m256i*>(at); };
  __m256i acc[R][2];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    acc[r][0] = add ? _mm256_loadu_si256(vector(m + r * kPanel)) : _mm256_setzero_si256();
    acc[r][1] = add ? _mm256_loadu_si256(vector(m + r * kPanel + 8)) : _mm256_setzero_si256();
  }
  const int32_t* next = m + R * kPanel;
  for (int64_t k = 0; k < pairs; ++k, a += 2, b += 2 * kPanel, ahead += 64, next += kPanel) {
    __builtin_prefetch(ahead);
    __builtin_prefetch(next);
    const __m256i left = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
    const __m256i right = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + 16));
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      int32_t both;
      std::memcpy(&both, a + r * a_stride, sizeof(both));
      const __m256i pair = _mm256_set1_epi32(both);
      dot_pairs(acc[r][0], pair, left);
      dot_pairs(acc[r][1], pair, right);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    _mm256_storeu_si256(vector(m + r * kPanel), acc[r][0]);
    _mm256_storeu_si256(vector(m + r * kPanel + 8), acc[r][1]);
  }
}

void multiply_pairs(const int16_t* a, int64_t a_stride, int64_t rows, const int16_t* b, int64_t pairs, int64_t vectors, int32_t* m,
                    bool add, Ahead both) {
  for (int64_t v = 0; v < vectors; ++v, b += 2 * kLanes, m += kLanes) {
    const char* ahead = v % 2 ? both.weights : both.inputs;
    switch (rows) {
      case 1: multiply_rows<1>(a, a_stride, b, pairs, m, add, ahead); break;
      case 2: multiply_rows<2>(a, a_stride, b, pairs, m, add, ahead); break;
      case 3: multiply_rows<3>(a, a_stride, b, pairs, m, add, ahead); break;
      case 4: multiply_rows<4>(a, a_stride, b, pairs, m, add, ahead); break;
      case 5: multiply_rows<5>(a, a_stride, b, pairs, m, add, ahead); break;
      default: multiply_rows<6>(a, a_stride, b, pairs, m, add, ahead); break;
    }
  }
}

}  // namespace
}  // namespace qdiff
