// One step of learning how weights are rounded, in one pass over everything that belongs to a weight.
//
// Results are the same for every instruction set: no product is fused with a sum, roots and quotients are exact.
#pragma once

#include "core/powers.h"

namespace qdiff {
namespace {

constexpr float kGamma = -0.1f, kStretch = 1.2f;  // h(V) = clamp(kStretch sigmoid(V) + kGamma, 0, 1)
constexpr float kFirstShare = 0.1f, kSecondDecay = 0.999f, kSecondShare = 0.001f, kAdamEpsilon = 1e-8f;
constexpr float kLeastBase = 1e-30f;  // of a power

// How far up a weight is rounded, and by how much that changes with V.
struct Rounding {
  Floats up, slope;

  QDIFF_INLINE explicit Rounding(const Floats& v) {
    const Floats sigmoid = 1.0f / (1.0f + two_to(v * -1.44269504f)), stretched = sigmoid * kStretch + kGamma;
    up = at_most(at_least(stretched, 0.0f), 1.0f);
    slope = select(stretched != up, Floats{}, sigmoid * (1.0f - sigmoid) * kStretch);
  }
};

// The gradient of the regulariser, pull * sum 1 - |2 h - 1|^beta, by h: against the side it lies on.
QDIFF_INLINE Floats pulled(const AdaRoundStep& p, const Floats& up) {
  const Floats side = up * 2.0f - 1.0f;
  const Floats strength = power_of(at_least(magnitude(side), kLeastBase), p.beta - 1.0f) * (-2.0f * p.beta * p.pull);
  return Floats(Ints(strength) ^ (Ints(side) & int32_t(0x80000000)));
}

template <typename Weight>
QDIFF_INLINE void adaround_row(const AdaRoundStep& p, int64_t row) {
  const Input gradient{p.gradient, p.gradient_type};
  auto* weight = static_cast<Weight*>(p.weight);
  const float scale = p.scales[row];
  const int64_t at = row * p.columns;
  each_stretch(p.columns, [&](int64_t c, auto count) {
    const int64_t i = at + c;
    const Floats v = load_some(p.up + i, count), base = load_codes(p.base + i, count);
    const Rounding before(v);
    const Floats code = base + before.up, held = at_most(at_least(code, p.low), p.high);
    Floats by_up = select(held != code, Floats{}, gradient.read(i, count) * scale);
    if (p.pull != 0) by_up = by_up + pulled(p, before.up);
    const Floats g = by_up * before.slope;

    const Floats m = load_some(p.first + i, count), s = load_some(p.second + i, count);
    const Floats first = m + (g - m) * kFirstShare;
    const Floats second = s * kSecondDecay + g * g * kSecondShare;
    const Floats next = v - first * p.rate / (square_root(second) * p.root_correction + kAdamEpsilon);
    store_some(p.first + i, first, count), store_some(p.second + i, second, count), store_some(p.up + i, next, count);
    store_some(weight + i, at_most(at_least(base + Rounding(next).up, p.low), p.high) * scale, count);
  });
}

template <typename Weight>
void adaround_rows(const AdaRoundStep& p, Tasks& tasks) {
  int64_t begin, end;
  while (tasks.take(begin, end)) {
    for (int64_t row = begin; row < end; ++row) adaround_row<Weight>(p, row);
  }
}

void adaround_step(const AdaRoundStep& p, Tasks& tasks) {
  switch (p.weight_type) {
    case Type::f32: return adaround_rows<float>(p, tasks);
    case Type::f16: return adaround_rows<Half>(p, tasks);
    default: return adaround_rows<Brain>(p, tasks);
  }
}

}  // namespace
}  // namespace qdiff
