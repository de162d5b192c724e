// Sixteen lanes in four registers of NEON. Products and sums are rounded one by one, as in plain C++: so results are those of
// the portable kernels and of AVX2.
#pragma once

#include <arm_neon.h>

namespace qdiff {
namespace {
constexpr int kRegisterBytes = 16;
}  // namespace
}  // namespace qdiff

#include "core/lanes.h"

namespace qdiff {
namespace {

// x, but at least low; low where x is NaN.
QDIFF_INLINE Floats at_least(const Floats& x, float low) {
  return by_parts<float>(x, [&](float32x4_t a) { return vmaxnmq_f32(a, vdupq_n_f32(low)); });
}
QDIFF_INLINE Floats at_most(const Floats& x, float high) {
  return by_parts<float>(x, [&](float32x4_t a) { return vminnmq_f32(a, vdupq_n_f32(high)); });
}
QDIFF_INLINE Floats multiply_add(const Floats& x, const Floats& y, const Floats& z) { return x * y + z; }
QDIFF_INLINE Floats reciprocal(const Floats& x) { return 1.0f / x; }
QDIFF_INLINE Floats square_root(const Floats& x) {
  return by_parts<float>(x, [](float32x4_t a) { return vsqrtq_f32(a); });
}
// To the nearest integer, ties to even; |x| must be below 2^31.
QDIFF_INLINE Ints nearest(const Floats& x) {
  return by_parts<int32_t>(x, [](float32x4_t a) { return Ints::Part(vcvtnq_s32_f32(a)); });
}

// The lowest byte of each.
QDIFF_INLINE Bytes to_bytes(const Ints& x) {
  const auto low = [&](int i) { return vreinterpretq_u16_s32(int32x4_t(x.at[i])); };
  const uint16x8_t left = vuzp1q_u16(low(0), low(1)), right = vuzp1q_u16(low(2), low(3));
  return Bytes(vuzp1q_u8(vreinterpretq_u8_u16(left), vreinterpretq_u8_u16(right)));
}

QDIFF_INLINE Ints widen_codes(const Bytes& x) {
  const int8x16_t codes = vreinterpretq_s8_u8(uint8x16_t(x));
  const int16x8_t halves[2] = {vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes)};
  Ints out;
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    out.at[2 * i] = Ints::Part(vmovl_s16(vget_low_s16(halves[i])));
    out.at[2 * i + 1] = Ints::Part(vmovl_high_s16(halves[i]));
  }
  return out;
}

QDIFF_INLINE Words widen(const Halves& x) {
  Words out;
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    out.at[2 * i] = Words::Part(vmovl_u16(vget_low_u16(uint16x8_t(x.at[i]))));
    out.at[2 * i + 1] = Words::Part(vmovl_high_u16(uint16x8_t(x.at[i])));
  }
  return out;
}

// The lower half of each.
QDIFF_INLINE Halves narrow(const Words& x) {
  const auto low = [&](int i) { return vreinterpretq_u16_u32(uint32x4_t(x.at[i])); };
  Halves out;
  out.at[0] = Halves::Part(vuzp1q_u16(low(0), low(1)));
  out.at[1] = Halves::Part(vuzp1q_u16(low(2), low(3)));
  return out;
}

QDIFF_INLINE Floats widen_half(const Halves& h) {
  Floats out;
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const float16x8_t half = vreinterpretq_f16_u16(uint16x8_t(h.at[i]));
    out.at[2 * i] = vcvt_f32_f16(vget_low_f16(half));
    out.at[2 * i + 1] = vcvt_high_f32_f16(half);
  }
  return out;
}

QDIFF_INLINE Halves narrow_half(const Floats& x) {
  Halves out;
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const float16x8_t half = vcvt_high_f16_f32(vcvt_f16_f32(x.at[2 * i]), x.at[2 * i + 1]);
    out.at[i] = Halves::Part(vreinterpretq_u16_f16(half));
  }
  return out;
}

}  // namespace
}  // namespace qdiff
