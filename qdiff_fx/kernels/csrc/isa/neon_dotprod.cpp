// Integer kernels for 64-bit ARM with dot products of signed bytes (Cortex-A76, Neoverse N1, Apple M1 and later).

#include "core/kernels.h"

#include <arm_neon.h>

// Signed by signed only: codes are read as code - 128, which `start` makes up for.
#define QDIFF_CODE_OFFSET 128

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
#include "isa/multiply_neon.h"

namespace qdiff {
namespace {

// Codes less 128 of four quads, or of one at every place.
QDIFF_INLINE int8x16_t centred_codes(const uint8_t* from) { return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(from), vdupq_n_u8(128))); }
QDIFF_INLINE int8x16_t centred_quad(const uint8_t* from) {
  uint32_t quad;
  std::memcpy(&quad, from, sizeof(quad));
  return vreinterpretq_s8_u32(vdupq_n_u32(quad ^ 0x80808080u));
}

// Sixteen channels of R rows times the quad at place Lane of each row's codes.
template <int Lane, int R>
QDIFF_INLINE void add_quad(int32x4_t (&acc)[R][4], const int8_t* weight, const int8x16_t (&codes)[R]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const int8x16_t four = vld1q_s8(weight + 16 * i);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) acc[r][i] = vdotq_laneq_s32(acc[r][i], four, codes[r], Lane);
  }
}

// 24 sums, sixteen codes of each row and the weights of four channels are 31 registers.
template <int R>
__attribute__((noinline)) void tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t group_bytes,
                                    const int32_t* start, int32_t* out) {
  int32x4_t acc[R][4];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) acc[r][i] = vld1q_s32(start + 4 * i);
  }
  for (int64_t t = 0; t < taps; ++t) {
    int64_t k = 0;
    int8x16_t codes[R];
    for (; k + 4 <= quads; k += 4, weight += 4 * group_bytes) {
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) codes[r] = centred_codes(rows[t][r] + 4 * k);
      add_quad<0>(acc, weight, codes);
      add_quad<1>(acc, weight + group_bytes, codes);
      add_quad<2>(acc, weight + 2 * group_bytes, codes);
      add_quad<3>(acc, weight + 3 * group_bytes, codes);
    }
    for (; k < quads; ++k, weight += group_bytes) {
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) codes[r] = centred_quad(rows[t][r] + 4 * k);
      add_quad<0>(acc, weight, codes);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) vst1q_s32(out + r * kBlockChannels + 4 * i, acc[r][i]);
  }
}

void dot_tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t row_count, int64_t vectors,
              const int32_t* start, int32_t* acc) {
  const int64_t bytes = vectors * kVectorBytes;
  for (int64_t v = 0; v < vectors; ++v, weight += kVectorBytes, start += kLanes, acc += kLanes) {
    switch (row_count) {
      case 1: tile<1>(rows, taps, quads, weight, bytes, start, acc); break;
      case 2: tile<2>(rows, taps, quads, weight, bytes, start, acc); break;
      case 3: tile<3>(rows, taps, quads, weight, bytes, start, acc); break;
      case 4: tile<4>(rows, taps, quads, weight, bytes, start, acc); break;
      case 5: tile<5>(rows, taps, quads, weight, bytes, start, acc); break;
      default: tile<6>(rows, taps, quads, weight, bytes, start, acc); break;
    }
  }
}

// As llvm-mca predicts them (benchmarks/kernels/arm_counts.py); those of transforms are twice those of AVX2.
const Rates kRates = {28, 28, 3.5, 20, 45, 6, 4};

const Kernel kAttention = {"neon_dotprod", 512, kMostKeys, 255, tile_plan, tile_pack, tile_attend};

}  // namespace

const Kernels kKernels = {"neon_dotprod", kCodeOffset, conv_tasks,      conv,
                          &kWinograd,     norm_splits, group_norm,      layer_norm,
                          pointwise,      &kAttention, &kSecondMoments,
                          nearest_codes, histogram,   round_with_feedback,
                          adaround_step, range_errors};

}  // namespace qdiff
