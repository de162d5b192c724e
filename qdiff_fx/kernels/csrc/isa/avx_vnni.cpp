// Integer kernels for the dot products of 256-bit registers: AVX-VNNI (Alder Lake and later, Zen 5), and the same
// instructions as AVX-512 encodes them (QDIFF_EVEX), which processors have that lack the other encoding.

#include "core/kernels.h"

#include <immintrin.h>

#include "core/adaround_step.h"
#include "core/conv.h"
#include "core/feedback.h"
#include "core/gram.h"
#include "core/histogram.h"
#include "core/nearest_codes.h"
#include "core/range_errors.h"
#include "core/norm.h"
#include "core/pointwise.h"

#include "core/attention_tile.h"
#include "isa/multiply_256.h"

#if defined(QDIFF_EVEX)
#define QDIFF_ENCODING "%{evex%} "
#define QDIFF_NAME "avx_vnni_evex"
#else
#define QDIFF_ENCODING "%{vex%} "
#define QDIFF_NAME "avx_vnni"
#endif

namespace qdiff {
namespace {

// acc += four-byte dot products of unsigned and signed bytes.
QDIFF_INLINE void dot_accumulate(__m256i& acc, const __m256i& u8, const __m256i& s8) {
  asm(QDIFF_ENCODING "vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(u8), "x"(s8));
}

QDIFF_INLINE void dot_pairs(__m256i& acc, const __m256i& x, const __m256i& y) {
  asm(QDIFF_ENCODING "vpdpwssd %2, %1, %0" : "+x"(acc) : "x"(x), "x"(y));
}

// Sixteen channels of R rows: 12 sums, two of weights and one of codes are all registers but one.
template <int R>
__attribute__((noinline)) void tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t group_bytes,
                                    const int32_t* start, int32_t* out) {
  const auto vector = [](const auto* at) { return reinterpret_cast<const __m256i*>(at); };
  __m256i acc[R][2];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    acc[r][0] = _mm256_loadu_si256(vector(start));
    acc[r][1] = _mm256_loadu_si256(vector(start + 8));
  }
  for (int64_t t = 0; t < taps; ++t) {
    const uint8_t* from[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) from[r] = rows[t][r];
    for (int64_t k = 0; k < quads; ++k, weight += group_bytes) {
      const __m256i left = _mm256_loadu_si256(vector(weight)), right = _mm256_loadu_si256(vector(weight + 32));
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        int32_t quad;
        std::memcpy(&quad, from[r] + 4 * k, sizeof(quad));
        const __m256i codes = _mm256_set1_epi32(quad);
        dot_accumulate(acc[r][0], codes, left);
        dot_accumulate(acc[r][1], codes, right);
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * kBlockChannels), acc[r][0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * kBlockChannels + 8), acc[r][1]);
  }
}

template <typename... Arguments>
QDIFF_INLINE void tile_of_rows(int64_t row_count, Arguments... arguments) {
  switch (row_count) {
    case 1: return tile<1>(arguments...);
    case 2: return tile<2>(arguments...);
    case 3: return tile<3>(arguments...);
    case 4: return tile<4>(arguments...);
    case 5: return tile<5>(arguments...);
    default: return tile<6>(arguments...);
  }
}

void dot_tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t row_count, int64_t vectors,
              const int32_t* start, int32_t* acc) {
  for (int64_t v = 0; v < vectors; ++v) {
    tile_of_rows(row_count, rows, taps, quads, weight + v * kVectorBytes, vectors * kVectorBytes, start + v * kLanes,
                 acc + v * kLanes);
  }
}

const Rates kRates = {58, 58, 31, 10, 23, 3, 2};

const Kernel kAttention = {QDIFF_NAME, 512, kMostKeys, 255, tile_plan, tile_pack, tile_attend};

}  // namespace

const Kernels kKernels = {QDIFF_NAME, kCodeOffset, conv_tasks,      conv,
                          &kWinograd, norm_splits, group_norm,      layer_norm,
                          pointwise,  &kAttention, &kSecondMoments,
                          nearest_codes, histogram,   round_with_feedback,
                          adaround_step, range_errors};

}  // namespace qdiff
