// Integer kernels for AVX2. The instruction that multiplies unsigned by signed bytes there adds two products in 16 bits
// and saturates: 255 * 127 * 2 does not fit. So bytes are widened to 16 bits first, and nothing can overflow.

#include "kernels.h"

#include <immintrin.h>

#include "conv.h"
#include "norm.h"
#include "pointwise.h"

#include "attention_tile.h"

namespace qdiff {
namespace {

constexpr int kStep = 3;  // 3 rows x 4 accumulators + weight + activation fit in 16 registers

// Four channels of a vector per register: two partial sums of each lie side by side until the end.
template <int R>
__attribute__((noinline)) void tile(const Rows* rows, int64_t row, int64_t taps, int64_t quads, const int8_t* weight,
                                    int64_t group_bytes, const int32_t* start, int32_t* out) {
  __m256i acc[R][4];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) acc[r][i] = _mm256_setzero_si256();
  }
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t k = 0; k < quads; ++k, weight += group_bytes) {
      __m256i code[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        int32_t quad;
        std::memcpy(&quad, rows[t][row + r] + 4 * k, sizeof(quad));
        code[r] = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(quad)));
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight + 16 * i)));
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) acc[r][i] = _mm256_add_epi32(acc[r][i], _mm256_madd_epi16(code[r], w));
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int half = 0; half < 2; ++half) {
      // hadd works within 128-bit lanes: channels come out as 0 1 4 5 2 3 6 7.
      const __m256i sums = _mm256_hadd_epi32(acc[r][2 * half], acc[r][2 * half + 1]);
      const __m256i ordered = _mm256_permute4x64_epi64(sums, 0xd8);
      const __m256i from = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start + 8 * half));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (row + r) * kBlockChannels + 8 * half),
                          _mm256_add_epi32(ordered, from));
    }
  }
}

void dot_tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t row_count,
              int64_t vectors, const int32_t* start, int32_t* acc) {
  const int64_t group_bytes = vectors * kVectorBytes;
  for (int64_t v = 0; v < vectors; ++v) {
    const int8_t* w = weight + v * kVectorBytes;
    int64_t row = 0;
    for (; row + kStep <= row_count; row += kStep) {
      tile<kStep>(rows, row, taps, quads, w, group_bytes, start + v * kLanes, acc + v * kLanes);
    }
    for (; row < row_count; ++row) tile<1>(rows, row, taps, quads, w, group_bytes, start + v * kLanes, acc + v * kLanes);
  }
}

const Kernel kAttention = {"avx2", 512, kMostKeys, 255, tile_plan, tile_pack, tile_attend};

}  // namespace

const Kernels kKernels = {"avx2",     kCodeOffset, conv_tasks, conv,       norm_splits,
                          group_norm, layer_norm,  pointwise,  &kAttention};

}  // namespace qdiff
