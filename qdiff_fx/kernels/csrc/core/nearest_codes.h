// Weights as their nearest codes, one scale for each row: the best of many, each tried.
//
// Scales and codes are the same for every instruction set: no product is fused with a sum, and sums are made in one order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "core/powers.h"

namespace qdiff {
namespace {

constexpr int64_t kBlockNumbers = 32 * kLanes;  // between two looks at whether a candidate can still win
constexpr int64_t kFirstStride = 8;             // of the candidates that are tried first
constexpr float kFirstReach = 0.5f;             // of the first list of large numbers

// |e|^power of what rounding to a code leaves, |e| <= 0.5, see `NearestCodes::near`.
QDIFF_INLINE Floats near_power(const Floats& e, const float* c) {
  const Floats x = magnitude(e), square = x * x;
  const Floats low = c[0] + c[1] * x, high = c[2] + c[3] * x;
  return square * (low + square * (high + c[4] * square));
}

// The search for the scale of one row, whose numbers are in units of the scale under which none clips.
class ScaleSearch {
 public:
  // units: whole vectors, zeros at the end; large: memory for as many.
  ScaleSearch(const NearestCodes& p, const float* units, float* large)
      : p_(p), units_(units), large_(large), padded_(ceil_div(p.columns, kLanes) * kLanes), end_(p.candidates) {}

  // By what the unclipped scale is multiplied.
  float best_ratio() {
    gather(kFirstReach);
    for (int64_t i = 0; i < p_.candidates; i += kFirstStride) consider(i);
    // Those nearby first: the sooner a good one is found, the sooner the others are dropped.
    const int64_t first = best_;
    for (int64_t step = 1; step < kFirstStride; ++step) {
      if (first >= step) consider(first - step);
      consider(first + step);
    }
    for (int64_t i = 0; i < end_; ++i) {
      if (i % kFirstStride != 0 && std::abs(i - first) >= kFirstStride) consider(i);
    }
    return p_.tried[best_].ratio;
  }

 private:
  // Those numbers that may clip where the scale is multiplied by `reach` or more.
  void gather(float reach) {
    reach_ = reach;
    const float least = float(std::min(p_.high, -p_.low)) * reach;
    int64_t count = 0;
    for (int64_t i = 0; i < p_.columns; ++i) {
      large_[count] = units_[i];
      count += std::fabs(units_[i]) > least;
    }
    large_count_ = ceil_div(count, kLanes) * kLanes;
    std::fill(large_ + count, large_ + large_count_, 0.0f);
  }

  void consider(int64_t candidate) {
    if (candidate >= end_) return;
    const NearestCodes::Candidate& tried = p_.tried[candidate];
    const float limit = float(least_ / tried.unit * (1 + 1e-6));
    Clipped clipped = clipping(tried.inverse, limit);
    if (clipped.alone > limit) {
      end_ = candidate;  // what clips grows as the scale shrinks
      return;
    }
    if (tried.ratio < reach_) {
      gather(p_.tried[p_.candidates - 1].ratio);
      clipped = clipping(tried.inverse, limit);
    }
    const double error = tried.unit * error_of(tried.inverse, clipped.more, limit);
    if (error < least_ || (error == least_ && candidate < best_)) least_ = error, best_ = candidate;
  }

  float error_of(float inverse, float error, float limit) const {
    for (int64_t i = 0; i < padded_ && error <= limit; i += kBlockNumbers) {
      error += near(inverse, i, std::min(padded_, i + kBlockNumbers));
    }
    return error <= limit ? error : std::numeric_limits<float>::infinity();
  }

  // Of numbers from `begin` to `end`, as if none clipped.
  float near(float inverse, int64_t begin, int64_t end) const {
    Floats sum = {};
    for (int64_t i = begin; i < end; i += kLanes) {
      const Floats steps = load(units_ + i) * inverse;
      sum += near_power(steps - rounded(steps), p_.near);
    }
    return sum_of_lanes(sum);
  }

  // The error of numbers that clip, and how much more it is than `near` makes of them.
  struct Clipped {
    float alone, more;
  };

  Clipped clipping(float inverse, float limit) const {
    Clipped found = {0, 0};
    for (int64_t i = 0; i < large_count_ && found.alone <= limit; i += kBlockNumbers) {
      Floats alone = {}, more = {};
      for (int64_t j = i; j < std::min(large_count_, i + kBlockNumbers); j += kLanes) {
        const Floats steps = load(large_ + j) * inverse, whole = rounded(steps);
        const Floats code = at_most(at_least(whole, float(p_.low)), float(p_.high));
        const Floats far = power_of(at_least(magnitude(steps - code), 0.5f), p_.power);
        const Ints clips = whole != code;
        alone += select(clips, far, Floats{});
        more += select(clips, far - near_power(steps - whole, p_.near), Floats{});
      }
      found.alone += sum_of_lanes(alone);
      found.more += sum_of_lanes(more);
    }
    return found;
  }

  const NearestCodes& p_;
  const float* units_;
  float* large_;
  int64_t padded_, end_, large_count_ = 0, best_ = -1;
  float reach_ = 0;
  double least_ = std::numeric_limits<double>::infinity();
};

// The scale under which no number of a row clips; NaN where one is not finite.
QDIFF_INLINE float unclipped_scale(const NearestCodes& p, const Input& in, int64_t at) {
  Floats least = {}, most = {};
  Ints finite = {};
  finite = ~finite;
  each_stretch(p.columns, [&](int64_t c, auto count) {
    const Floats x = in.read(at + c, count);
    least = select(x < least, x, least);
    most = select(x > most, x, most);
    finite = finite & ~((x - x) != Floats{});
  });
  alignas(64) float lanes_least[kLanes], lanes_most[kLanes];
  alignas(64) int32_t lanes_finite[kLanes];
  store(lanes_least, least), store(lanes_most, most), store_raw(lanes_finite, finite);
  for (int64_t i = 0; i < kLanes; ++i) {
    if (!lanes_finite[i]) return std::numeric_limits<float>::quiet_NaN();
  }
  const double low = *std::min_element(lanes_least, lanes_least + kLanes) / double(p.low);
  const double scale = std::max(*std::max_element(lanes_most, lanes_most + kLanes) / double(p.high), low);
  return scale == 0 ? 1.0f : float(std::max(scale, double(std::numeric_limits<float>::min())));
}

QDIFF_INLINE void nearest_row(const NearestCodes& p, int64_t row, float* scratch) {
  const Input in{p.weight, p.type};
  const int64_t at = row * p.columns, padded = ceil_div(p.columns, kLanes) * kLanes;
  float scale = unclipped_scale(p, in, at);
  if (p.candidates > 1 && scale == scale) {
    const float inverse = 1.0f / scale;
    each_stretch(p.columns, [&](int64_t c, auto count) { store(scratch + c, in.read(at + c, count) * inverse); });
    scale = std::max(scale * ScaleSearch(p, scratch, scratch + padded).best_ratio(), std::numeric_limits<float>::min());
  }
  p.scales[row] = scale;
  const float inverse = 1.0f / scale;
  each_stretch(p.columns, [&](int64_t c, auto count) {
    const Floats steps = at_most(at_least(in.read(at + c, count) * inverse, float(p.low)), float(p.high));
    store_codes(p.codes + at + c, to_bytes(nearest(steps)), count);
  });
}

void nearest_codes(const NearestCodes& p, Tasks& tasks) {
  float* scratch = p.scratch + tasks.thread * p.scratch_numbers;
  int64_t begin, end;
  while (tasks.take(begin, end)) {
    for (int64_t row = begin; row < end; ++row) nearest_row(p, row, scratch);
  }
}

}  // namespace
}  // namespace qdiff
