// Codes of some columns of a weight, one after the other from the last to the first, each making up for what those before it
// left over.
//
// Codes are the same for every instruction set and any number of threads: no product is fused with a sum, and each sum is made
// in one order.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/vec.h"

namespace qdiff {
namespace {

// Of channels side by side: sums in registers, enough of them that none waits for the product before it.
constexpr int64_t kFeedbackVectors = std::is_class_v<Floats> ? 4 : 8;  // a class where a vector is several registers

// What the codes of a group of channels leave over, [column][channel].
struct Left {
  alignas(64) float steps[kMostFeedbackColumns][kFeedbackVectors * kLanes];
};

// sums += products of column `at`'s factor with what columns behind it left over, the last first.
QDIFF_INLINE void pull_from_behind(const FeedbackRounding& p, int64_t at, const Left& left, Floats (&sums)[kFeedbackVectors]) {
  const float* factor = p.factor + at * p.columns;
  for (int64_t behind = p.columns - 1; behind > at; --behind) {
    const float by = factor[behind];
#pragma GCC unroll 8
    for (int64_t v = 0; v < kFeedbackVectors; ++v) sums[v] += load(left.steps[behind] + v * kLanes) * by;
  }
}

// The code of one column of up to sixteen channels from `channel`.
QDIFF_INLINE void round_vector(const FeedbackRounding& p, int64_t at, int64_t channel, int64_t count, const Floats& pull, float* left,
                               Floats& error) {
  const int64_t index = at * p.channels + channel;
  const float end = p.factor[at * p.columns + at];
  const Floats steps = load_some(p.steps + index, count), target = steps + pull / end;
  const Ints code = nearest(at_most(at_least(target, p.low), p.high));
  const Floats value = to_floats(code), off = (target - value) * end;
  error += off * off;
  store(left, steps - value);
  store_some(p.left + index, steps - value, count);
  store_codes(p.codes + index, to_bytes(code), count);
}

void round_group(const FeedbackRounding& p, int64_t first, int64_t count, Left& left) {
  const int64_t vectors = ceil_div(count, kLanes);
  const auto lanes_of = [&](int64_t v) { return std::min(kLanes, count - v * kLanes); };
  Floats error[kFeedbackVectors] = {};
  for (int64_t at = p.columns - 1; at >= 0; --at) {
    Floats sums[kFeedbackVectors] = {};
    for (int64_t v = 0; v < vectors; ++v) {
      sums[v] = load_some(p.pull + at * p.channels + first + v * kLanes, lanes_of(v));
    }
    pull_from_behind(p, at, left, sums);
    for (int64_t v = 0; v < vectors; ++v) {
      round_vector(p, at, first + v * kLanes, lanes_of(v), sums[v], left.steps[at] + v * kLanes, error[v]);
    }
  }
  for (int64_t v = 0; v < vectors; ++v) store_some(p.error + first + v * kLanes, error[v], lanes_of(v));
}

void round_with_feedback(const FeedbackRounding& p, Tasks& tasks) {
  Left left{};
  int64_t begin, end;
  while (tasks.take(begin, end)) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t last = std::min((task + 1) * kFeedbackChannels, p.channels);
      for (int64_t first = task * kFeedbackChannels; first < last; first += kFeedbackVectors * kLanes) {
        round_group(p, first, std::min(kFeedbackVectors * kLanes, last - first), left);
      }
    }
  }
}

}  // namespace
}  // namespace qdiff
