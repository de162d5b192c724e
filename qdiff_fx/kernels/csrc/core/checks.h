// Checks of numbers: the limits that every operator keeps to, before it computes a size or allocates anything.
//
// Operators get their arguments from graphs, and graphs from files. So nothing here trusts a size or a length to be what a
// pass would have written. The limits are far above what any network needs, and low enough that no product of sizes
// exceeds 64 bits.
#pragma once

#include <cfloat>
#include <cstdint>
#include <initializer_list>

#include "core/attention.h"
#include "core/error.h"
#include "core/sizes.h"

namespace qdiff {

constexpr int64_t kMostElements = int64_t{1} << 34;  // of one tensor
constexpr int64_t kMostExtent = int64_t{1} << 24;    // rows or columns of a padded, enlarged image; also strides, ...
constexpr int64_t kMostEnlarge = 256;                // of an image, along one side
constexpr int64_t kMostWeights = INT32_MAX / 255;    // sum of a channel's weights, see accumulator.py

// The product of sizes, none of which is negative.
inline int64_t checked_elements(const Sizes& sizes, const char* op) {
  int64_t count = 1;
  for (const int64_t size : sizes) {
    QDIFF_CHECK(size >= 0, op, ": there is no size ", size);
    if (size == 0) return 0;
  }
  for (const int64_t size : sizes) {
    QDIFF_CHECK(size <= kMostElements / count, op, ": a result ", sizes, " of more than ", kMostElements, " elements");
    count *= size;
  }
  return count;
}

inline void check_within(int64_t number, int64_t low, int64_t high, const char* what, const char* op) {
  QDIFF_CHECK(low <= number && number <= high, op, ": ", what, " must be ", low, "..", high, ", not ", number);
}

// Positive and finite in float32 too, and so is its inverse.
inline void check_positive(double number, const char* what, const char* op) {
  QDIFF_CHECK(FLT_MIN <= number && number <= FLT_MAX, op, ": ", what, " must be a positive finite number of float32, not ",
              number);
}

// One that float32 rounds to nothing would be so in one kernel and not in another.
inline void check_epsilon(double number, const char* op) {
  QDIFF_CHECK(number == 0 || (FLT_MIN <= number && number <= FLT_MAX), op,
              ": epsilon must be 0 or a positive finite number of float32, not ", number);
}

inline Activation checked_activation(int64_t number, std::initializer_list<Activation> known, const char* op) {
  for (const Activation each : known) {
    if (number == static_cast<int64_t>(each)) return each;
  }
  fail(op, ": there is no activation ", number, " here");
}

}  // namespace qdiff
