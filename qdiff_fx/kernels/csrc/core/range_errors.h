// What quantizing each of some distributions costs under each of many grids.
#pragma once

#include <algorithm>

#include "core/powers.h"

namespace qdiff {
namespace {

constexpr int64_t kBinsAtOnce = 32 * kLanes;
constexpr float kTiniest = 1e-30f;  // of powers

// A grid of steps, and the error's antiderivative at many edges: so many whole cells, and a part of one.
struct Cells {
  float scale, first, last, power;
  float cells[kBinsAtOnce + kLanes], parts[kBinsAtOnce + kLanes];

  // Of edges at 0 .. count.
  QDIFF_INLINE void integrate(const float* edges, int64_t count) {
    each_stretch(count + 1, [&](int64_t i, auto lanes) {
      const Floats x = load_some(edges + i, lanes);
      // Clipped before it is rounded too: it may be far outside.
      const Floats steps = at_most(at_least(x / scale, first - 1.0f), last + 1.0f);
      const Floats point = at_most(at_least(rounded(steps), first), last), rest = x - point * scale;
      const Floats part = power_of(at_least(magnitude(rest), kTiniest), power + 1.0f);
      store(cells + i, point), store(parts + i, select(rest < Floats{}, Floats{} - part, part));
    });
  }
};

// The mean of |x - x^|^power, x^ what the grid makes of x.
QDIFF_INLINE float range_error(const RangeErrors& p, int64_t grid) {
  const int64_t distribution = grid / p.grids, skipped = p.begins[distribution];
  const int64_t bins = p.begins[distribution + 1] - skipped;
  const float *edges = p.edges + skipped + distribution, *density = p.density + skipped;
  Cells found{p.scales[grid], p.firsts[grid], p.lasts[grid], p.power, {}, {}};
  const Floats cell = 2.0f * power_of(Floats{} + 0.5f * found.scale, p.power + 1.0f);
  double total = 0;
  for (int64_t begin = 0; begin < bins; begin += kBinsAtOnce) {
    const int64_t count = std::min(kBinsAtOnce, bins - begin);
    found.integrate(edges + begin, count);
    Floats sum = {};
    each_stretch(count, [&](int64_t i, auto lanes) {
      const Floats cells = load(found.cells + i + 1) - load(found.cells + i);
      const Floats parts = load(found.parts + i + 1) - load(found.parts + i);
      sum += (cells * cell + parts) * load_some(density + begin + i, lanes);
    });
    total += sum_of_lanes(sum);
  }
  return float(total / (double(p.power) + 1));
}

void range_errors(const RangeErrors& p, Tasks& tasks) {
  int64_t begin, end;
  while (tasks.take(begin, end)) {
    for (int64_t grid = begin; grid < end; ++grid) p.errors[grid] = range_error(p, grid);
  }
}

}  // namespace
}  // namespace qdiff
