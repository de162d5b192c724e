// The transforms of Winograd's F(4x4, 3x3) along one side; see winograd.h.
#pragma once

#include "core/conv.h"

namespace qdiff {
namespace {

// As many 16-bit numbers, and 32-bit ones, as are one register.
#if defined(__AVX512BW__)
constexpr int64_t kRegister = 64;
#elif defined(__AVX2__)
constexpr int64_t kRegister = 32;
#else
constexpr int64_t kRegister = 16;
#endif
typedef int16_t Shorts __attribute__((vector_size(kRegister)));
typedef uint16_t Halfwords __attribute__((vector_size(kRegister)));
typedef int32_t Wides __attribute__((vector_size(kRegister)));
typedef uint32_t Unsigneds __attribute__((vector_size(kRegister)));

constexpr int64_t kPatch = 6, kOutputs = 4, kPositions = kPatch * kPatch;
// Positions are computed in two halves, three rows of six each: what both need in between is half as much.
constexpr int64_t kHalfRows = kPatch / 2, kHalfPositions = kHalfRows * kPatch;

// The first three, and the last three: so many intermediate results at a time are as many as there are registers.
template <bool Last, typename V>
QDIFF_INLINE void half_input_transform(const V (&d)[kPatch], V* out) {
  const V even = d[4] - d[2];
  if constexpr (Last) {
    const V odd = d[3] - d[1];
    out[0] = even + (odd << 1);
    out[1] = even - (odd << 1);
    out[2] = d[5] - d[3] - (odd << 2);
  } else {
    const V far_even = d[4] - (d[2] << 2), far_odd = d[3] - (d[1] << 2);
    out[0] = ((d[0] - d[2]) << 2) + even;
    out[1] = far_even + far_odd;
    out[2] = far_even - far_odd;
  }
}

template <typename V>
QDIFF_INLINE void input_transform(const V (&d)[kPatch], V (&out)[kPatch]) {
  half_input_transform<false>(d, out);
  half_input_transform<true>(d, out + kPatch / 2);
}

// G without its fractions 1/4, -1/6, -1/6, 1/24, 1/24, 1; the first three and the last three.
template <bool Last, typename V>
QDIFF_INLINE void half_weight_transform(const V& a, const V& b, const V& c, V* out) {
  if constexpr (Last) {
    const V far = a + (c << 2), twice = b << 1;
    out[0] = far + twice;
    out[1] = far - twice;
    out[2] = c;
  } else {
    const V ends = a + c;
    out[0] = a;
    out[1] = ends + b;
    out[2] = ends - b;
  }
}

template <typename V>
QDIFF_INLINE void weight_transform(const V& a, const V& b, const V& c, V (&out)[kPatch]) {
  half_weight_transform<false>(a, b, c, out);
  half_weight_transform<true>(a, b, c, out + kHalfRows);
}

// 24 times what G's fractions would have made of it.
template <typename V>
QDIFF_INLINE void output_transform(const V (&m)[kPatch], V (&out)[kOutputs]) {
  const V near = m[1] + m[2], apart = m[1] - m[2], far = m[3] + m[4], far_apart = m[3] - m[4];
  out[0] = (m[0] << 1) + ((m[0] - near) << 2) + far;
  out[1] = (far_apart << 1) - (apart << 2);
  out[2] = (far - near) << 2;
  out[3] = (far_apart << 3) - (apart << 2) + (m[5] << 4) + (m[5] << 3);
}

}  // namespace
}  // namespace qdiff
