// Histograms on grids whose widths are powers of two, around 0.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/vec.h"

namespace qdiff {
namespace {

// Every `step`-th of `count` numbers, as vectors.
template <typename Element>
QDIFF_INLINE Floats load_apart(const Element* from, int64_t step, int64_t count) {
  if (step == 1) return load_some(from, count);
  alignas(64) Element together[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) together[i] = from[i * step];
  return load(together);
}

// floor(x / 2^exponent) from `low` to `high`. Where the exponent is large, small negative numbers become -0, whose bin is still
// that below 0.
QDIFF_INLINE Ints bin_of(const Floats& x, float inverse, float low, float high) {
  constexpr float kSmallest = 0x1p-126f;
  const Floats steps = x * inverse, signed_steps = select(x < Floats{}, at_most(steps, -kSmallest), steps);
  const Floats inside = at_most(at_least(signed_steps, low), high);
  const Ints found = nearest(inside);
  return found + (to_floats(found) > inside);  // true is -1
}

template <typename Element>
void count_numbers(const Histogram& p, const Element* from, int64_t count, uint32_t* counts) {
  const float inverse = std::ldexp(1.0f, -p.exponent);
  const int64_t half = p.bins / 2, step = p.step;
  uint32_t* counter[kCounters];  // of the bin above 0
  for (int64_t i = 0; i < kCounters; ++i) counter[i] = counts + i * p.bins + half;
  each_stretch(count, [&](int64_t i, auto lanes) {
    alignas(64) int32_t bins[kLanes];
    store_raw(bins, bin_of(load_apart(from + i * step, step, lanes), inverse, float(-half), float(half - 1)));
#pragma GCC unroll 16
    for (int64_t j = 0; j < lanes; ++j) ++counter[j % kCounters][bins[j]];
  });
}

template <typename Element>
void histogram_of(const Histogram& p, Tasks& tasks) {
  const auto* in = static_cast<const Element*>(p.in);
  uint32_t* counts = p.counts + tasks.thread * kCounters * p.bins;
  const int64_t of_row = histogram_tasks_of_row(p), counted = counted_columns(p);
  int64_t begin, end;
  while (tasks.take(begin, end)) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % of_row * kHistogramTask;
      const Element* from = in + task / of_row * p.columns + first * p.step;
      count_numbers(p, from, std::min(kHistogramTask, counted - first), counts);
    }
  }
}

void histogram(const Histogram& p, Tasks& tasks) {
  switch (p.type) {
    case Type::f32: return histogram_of<float>(p, tasks);
    case Type::f16: return histogram_of<Half>(p, tasks);
    default: return histogram_of<Brain>(p, tasks);
  }
}

}  // namespace
}  // namespace qdiff
