// Powers and sums that are the same for every instruction set: no product is fused with a sum, and order is fixed.
#pragma once

#include "core/vec.h"

namespace qdiff {
namespace {

constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: its last bit is worth one

QDIFF_INLINE Floats magnitude(const Floats& x) { return Floats(Ints(x) & 0x7fffffff); }
QDIFF_INLINE Floats rounded(const Floats& x) { return (x + kRounder) - kRounder; }

// 2^x to about 1e-7, x from -126 to 126; beyond, that of the end.
QDIFF_INLINE Floats two_to(const Floats& x) {
  const Floats within = at_most(at_least(x, -126.0f), 126.0f);
  const Floats whole = rounded(within), f = within - whole;
  // Minimax for |f| <= 0.5 (Cephes, exp2f).
  Floats p = 1.339887440266574e-3f + f * 1.535336188319500e-4f;
  p = 9.618437357674640e-3f + f * p;
  p = 5.550332471162809e-2f + f * p;
  p = 2.402264791363012e-1f + f * p;
  p = 6.931472028550421e-1f + f * p;
  return Floats(Ints(1.0f + f * p) + (nearest(whole) << 23));
}

// x^power of normal x > 0, to about 1e-6.
QDIFF_INLINE Floats power_of(const Floats& x, float power) {
  // x = 2^n m, m from sqrt(1/2) to sqrt(2); log(m) = 2 artanh((m - 1) / (m + 1)).
  const Ints n = (Ints(x) - 0x3f3504f3) >> 23;
  const Floats m = Floats(Ints(x) - (n << 23)), z = (m - 1.0f) / (m + 1.0f), y = z * z;
  const Floats series = 2.88539008f + y * (0.961796694f + y * (0.577078016f + y * 0.412198583f));
  return two_to((to_floats(n) + z * series) * power);
}

QDIFF_INLINE float sum_of_lanes(const Floats& x) {
  alignas(64) float lane[kLanes];
  store(lane, x);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

}  // namespace
}  // namespace qdiff
