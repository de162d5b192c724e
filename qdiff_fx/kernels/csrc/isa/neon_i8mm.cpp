// Integer kernels for 64-bit ARM with products of matrices of bytes (Neoverse V1 and N2, Cortex-A510 and A710, Apple M2 and
// later).

#include "core/kernels.h"

#include <arm_neon.h>

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

QDIFF_INLINE uint8x8_t two_quads(const uint8_t* from) { return vld1_u8(from); }
QDIFF_INLINE uint8x8_t one_quad(const uint8_t* from) {
  uint32_t quad;
  std::memcpy(&quad, from, sizeof(quad));
  return vreinterpret_u8_u32(vset_lane_u32(quad, vdup_n_u32(0), 0));
}

// An instruction multiplies two rows of eight codes with two channels of eight weights: its four sums are of the first row's
// channels, then of the second's. As weights are packed four channels by four inputs, those of two quads are interleaved.
template <int P>
QDIFF_INLINE void add_two_quads(int32x4_t (&acc)[P][8], const uint8x16_t (&codes)[P], const int8x16_t& first,
                                const int8x16_t& second, int i) {
  const int32x4_t a = vreinterpretq_s32_s8(first), b = vreinterpretq_s32_s8(second);
  const int8x16_t left = vreinterpretq_s8_s32(vzip1q_s32(a, b)), right = vreinterpretq_s8_s32(vzip2q_s32(a, b));
#pragma GCC unroll 3
  for (int r = 0; r < P; ++r) {
    acc[r][2 * i] = vusmmlaq_s32(acc[r][2 * i], codes[r], left);
    acc[r][2 * i + 1] = vusmmlaq_s32(acc[r][2 * i + 1], codes[r], right);
  }
}

// Sixteen channels of R rows, in pairs; of an odd number the last row is its own neighbour. 24 sums, three registers of codes
// and four of weights are 31.
template <int R>
__attribute__((noinline)) void tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t group_bytes,
                                    const int32_t* start, int32_t* out) {
  constexpr int P = (R + 1) / 2;
  int32x4_t acc[P][8];
#pragma GCC unroll 3
  for (int r = 0; r < P; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) acc[r][i] = vdupq_n_s32(0);
  }
  for (int64_t t = 0; t < taps; ++t) {
    const uint8_t* from[2 * P];
#pragma GCC unroll 6
    for (int r = 0; r < 2 * P; ++r) from[r] = rows[t][std::min(r, R - 1)];
    uint8x16_t codes[P];
    int64_t k = 0;
    for (; k + 2 <= quads; k += 2, weight += 2 * group_bytes) {
#pragma GCC unroll 3
      for (int r = 0; r < P; ++r) codes[r] = vcombine_u8(two_quads(from[2 * r] + 4 * k), two_quads(from[2 * r + 1] + 4 * k));
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        add_two_quads(acc, codes, vld1q_s8(weight + 16 * i), vld1q_s8(weight + group_bytes + 16 * i), i);
      }
    }
    if (k == quads) continue;
#pragma GCC unroll 3
    for (int r = 0; r < P; ++r) codes[r] = vcombine_u8(one_quad(from[2 * r] + 4 * k), one_quad(from[2 * r + 1] + 4 * k));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) add_two_quads(acc, codes, vld1q_s8(weight + 16 * i), vdupq_n_s8(0), i);
    weight += group_bytes;
  }
#pragma GCC unroll 3
  for (int r = 0; r < P; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int64x2_t left = vreinterpretq_s64_s32(acc[r][2 * i]), right = vreinterpretq_s64_s32(acc[r][2 * i + 1]);
      const int32x4_t first = vld1q_s32(start + 4 * i);
      int32_t* to = out + 2 * r * kBlockChannels + 4 * i;
      vst1q_s32(to, vaddq_s32(first, vreinterpretq_s32_s64(vzip1q_s64(left, right))));
      if (2 * r + 1 == R) continue;
      vst1q_s32(to + kBlockChannels, vaddq_s32(first, vreinterpretq_s32_s64(vzip2q_s64(left, right))));
    }
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
const Rates kRates = {70, 70, 7, 20, 45, 6, 4};

const Kernel kAttention = {"neon_i8mm", 512, kMostKeys, 255, tile_plan, tile_pack, tile_attend};

}  // namespace

const Kernels kKernels = {"neon_i8mm", kCodeOffset, conv_tasks,      conv,
                          &kWinograd,  norm_splits, group_norm,      layer_norm,
                          pointwise,   &kAttention, &kSecondMoments,
                          nearest_codes, histogram,   round_with_feedback,
                          adaround_step, range_errors};

}  // namespace qdiff
