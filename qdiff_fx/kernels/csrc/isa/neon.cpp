// Integer kernels for 64-bit ARM without dot products of bytes: any of its processors runs them.

#include "core/kernels.h"

#include <arm_neon.h>

// Products are of signed bytes: codes are read as code - 128, which `start` makes up for.
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

// Sixteen channels of R rows. Two products of bytes may be more than 16 bits hold, so they are added to their neighbours into
// 32 bits one by one, and each channel has two sums. Those of three rows, their codes and the weights of four channels are 28
// registers.
template <int R>
__attribute__((noinline)) void tile(const uint8_t* const (*rows)[kTileRows], int64_t first_row, int64_t taps, int64_t quads,
                                    const int8_t* weight, int64_t group_bytes, const int32_t* start, int32_t* out) {
  int32x4_t acc[R][8];
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) acc[r][i] = vdupq_n_s32(0);
  }
  for (int64_t t = 0; t < taps; ++t) {
    const uint8_t* from[R];
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) from[r] = rows[t][first_row + r];
    for (int64_t k = 0; k < quads; ++k, weight += group_bytes) {
      int8x16_t codes[R];
#pragma GCC unroll 3
      for (int r = 0; r < R; ++r) {
        uint32_t quad;
        std::memcpy(&quad, from[r] + 4 * k, sizeof(quad));
        codes[r] = vreinterpretq_s8_u32(vdupq_n_u32(quad ^ 0x80808080u));
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const int8x16_t four = vld1q_s8(weight + 16 * i);
#pragma GCC unroll 3
        for (int r = 0; r < R; ++r) {
          acc[r][2 * i] = vpadalq_s16(acc[r][2 * i], vmull_s8(vget_low_s8(four), vget_low_s8(codes[r])));
          acc[r][2 * i + 1] = vpadalq_s16(acc[r][2 * i + 1], vmull_high_s8(four, codes[r]));
        }
      }
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int32x4_t sums = vpaddq_s32(acc[r][2 * i], acc[r][2 * i + 1]);
      vst1q_s32(out + (first_row + r) * kBlockChannels + 4 * i, vaddq_s32(sums, vld1q_s32(start + 4 * i)));
    }
  }
}

void dot_tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t row_count, int64_t vectors,
              const int32_t* start, int32_t* acc) {
  const int64_t bytes = vectors * kVectorBytes;
  for (int64_t v = 0; v < vectors; ++v, weight += kVectorBytes, start += kLanes, acc += kLanes) {
    for (int64_t row = 0; row < row_count; row += 3) {
      switch (row_count - row) {
        case 1: tile<1>(rows, row, taps, quads, weight, bytes, start, acc); break;
        case 2: tile<2>(rows, row, taps, quads, weight, bytes, start, acc); break;
        default: tile<3>(rows, row, taps, quads, weight, bytes, start, acc); break;
      }
    }
  }
}

// As llvm-mca predicts them (benchmarks/kernels/arm_counts.py); those of transforms are twice those of AVX2.
const Rates kRates = {6, 6, 3.5, 20, 45, 6, 2};

const Kernel kAttention = {"neon", 512, kMostKeys, 255, tile_plan, tile_pack, tile_attend};

}  // namespace

const Kernels kKernels = {"neon",     kCodeOffset, conv_tasks,      conv,
                          &kWinograd, norm_splits, group_norm,      layer_norm,
                          pointwise,  &kAttention, &kSecondMoments,
                          nearest_codes, histogram,   round_with_feedback,
                          adaround_step, range_errors};

}  // namespace qdiff
