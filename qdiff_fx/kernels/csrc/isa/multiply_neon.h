// Products of 16-bit pairs for Winograd's algorithm on NEON.
#pragma once

#include <arm_neon.h>

#include "core/winograd.h"

namespace qdiff {
namespace {

// Eight channels of R rows, two pairs at a time: there is an even number of them. 12 sums, four registers of weights, of which
// the even and odd numbers are parted when they are read, and one of each row.
template <int R>
__attribute__((noinline)) void multiply_rows(const int16_t* a, int64_t a_stride, const int16_t* b, int64_t pairs, int32_t* m,
                                             bool add, const char* ahead) {
  int32x4_t acc[R][2];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    acc[r][0] = add ? vld1q_s32(m + r * kPanel) : vdupq_n_s32(0);
    acc[r][1] = add ? vld1q_s32(m + r * kPanel + 4) : vdupq_n_s32(0);
  }
  for (int64_t k = 0; k < pairs; k += 2, a += 4, b += 4 * kPanel, ahead += 128) {
    __builtin_prefetch(ahead);
    __builtin_prefetch(ahead + 64);
    const int16x8x2_t first = vld2q_s16(b), second = vld2q_s16(b + 2 * kPanel);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const int16x4_t row = vld1_s16(a + r * a_stride);
      acc[r][0] = vmlal_lane_s16(acc[r][0], vget_low_s16(first.val[0]), row, 0);
      acc[r][1] = vmlal_high_lane_s16(acc[r][1], first.val[0], row, 0);
      acc[r][0] = vmlal_lane_s16(acc[r][0], vget_low_s16(first.val[1]), row, 1);
      acc[r][1] = vmlal_high_lane_s16(acc[r][1], first.val[1], row, 1);
      acc[r][0] = vmlal_lane_s16(acc[r][0], vget_low_s16(second.val[0]), row, 2);
      acc[r][1] = vmlal_high_lane_s16(acc[r][1], second.val[0], row, 2);
      acc[r][0] = vmlal_lane_s16(acc[r][0], vget_low_s16(second.val[1]), row, 3);
      acc[r][1] = vmlal_high_lane_s16(acc[r][1], second.val[1], row, 3);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    vst1q_s32(m + r * kPanel, acc[r][0]);
    vst1q_s32(m + r * kPanel + 4, acc[r][1]);
  }
}

void multiply_pairs(const int16_t* a, int64_t a_stride, int64_t rows, const int16_t* b, int64_t pairs, int64_t vectors, int32_t* m,
                    bool add, Ahead both) {
  for (int64_t eight = 0; eight < 2 * vectors; ++eight, b += 16, m += 8) {
    const char* ahead = eight % 2 ? both.weights : both.inputs;
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
