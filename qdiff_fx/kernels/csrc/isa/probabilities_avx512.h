// From scores to probability codes, round(levels * exp(score - peak)), 64 at a time.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/activations.h"
#include "isa/avx512.h"

namespace qdiff {
namespace {

constexpr int64_t kStretch = 64;

// 64 codes of 16 bits that packing twice has brought out of order, as bytes in order.
QDIFF_INLINE __m512i codes_in_order(__m512i low, __m512i high) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
}

// Of integer scores, in 16-bit fixed point: the codes need 8 bits, and so twice as many fit into a register as floats.
// A code is within 5e-4 of itself before it is rounded.
//
// The distance u = (peak - score) * scale of base-2 exponents has 11 bits after the point and is at most 16, where codes
// are long zero. Of 2^-u, a table has the first 6 bits after the point, a straight line to the next entry the other 5,
// and a shift the integer part.
class FixedSoftmax {
 public:
  // scale: of one integer step of the scores, positive; in units of base-2 exponents.
  FixedSoftmax(double scale, int32_t levels) {
    // A distance of 16 bits times a multiplier of 16 bits, the upper half kept: shifted so that neither loses bits.
    int exponent = -64;
    if (scale > 0) exponent = std::isinf(scale) ? kMostLeft : std::ilogb(scale) + kPoint + 1;
    left_ = std::clamp(exponent, 0, kMostLeft);
    right_ = std::clamp(-exponent, 0, 31);
    const double multiplier = std::ldexp(scale, 16 + kPoint - left_ + right_);
    multiplier_ = _mm512_set1_epi16(int16_t(std::lround(std::min(65535.0, multiplier))));
    half_ = right_ > 0 ? 1 << (right_ - 1) : 0;
    most_ = _mm512_set1_epi16(int16_t(65535 >> left_));
    while (int64_t{levels} << (after_point_ + 1) < 65536) ++after_point_;
    alignas(64) uint16_t entries[kEntries + 1], steps[kEntries];
    for (int i = 0; i <= kEntries; ++i) {
      // The product's lower half is cut off: half a unit on the average.
      const double u = double(i) / kEntries + std::ldexp(0.5, -kPoint);
      entries[i] = uint16_t(std::lround(std::ldexp(levels * std::exp2(-u), after_point_)));
    }
    for (int i = 0; i < kEntries; ++i) steps[i] = uint16_t(entries[i] - entries[i + 1]);
    for (int i = 0; i < 2; ++i) {
      entries_[i] = _mm512_loadu_si512(entries + i * 32);
      steps_[i] = _mm512_loadu_si512(steps + i * 32);
    }
  }

  void set_peak(int32_t peak) { peak_ = _mm512_set1_epi32(peak + half_); }

  QDIFF_INLINE __m512i codes(const int32_t* scores) const {
    return left_ ? in_order<true>(scores) : in_order<false>(scores);
  }

 private:
  static constexpr int kPoint = 11;     // bits after the point
  static constexpr int kEntryBits = 6;  // of them in the table
  static constexpr int kEntries = 1 << kEntryBits;
  static constexpr int kMostLeft = 15;

  template <bool kLeft>
  QDIFF_INLINE __m512i in_order(const int32_t* scores) const {
    const __m512i low = pair<kLeft>(scores), high = pair<kLeft>(scores + 32);
    return codes_in_order(low, high);
  }

  QDIFF_INLINE __m512i distance(const int32_t* scores) const {
    return _mm512_sub_epi32(peak_, _mm512_loadu_si512(scores));
  }

  // 32 codes of 16 bits.
  template <bool kLeft>
  QDIFF_INLINE __m512i pair(const int32_t* scores) const {
    __m512i far;
    if constexpr (kLeft) {
      far = _mm512_packus_epi32(distance(scores), distance(scores + 16));
      far = _mm512_sll_epi16(_mm512_min_epu16(far, most_), _mm_cvtsi32_si128(left_));
    } else {
      const __m128i right = _mm_cvtsi32_si128(right_);
      far = _mm512_packus_epi32(_mm512_srl_epi32(distance(scores), right),
                                _mm512_srl_epi32(distance(scores + 16), right));
    }
    const __m512i u = _mm512_mulhi_epu16(far, multiplier_);
    const __m512i entry = _mm512_srli_epi16(u, kPoint - kEntryBits);  // of which the lookup takes the last 6 bits
    const __m512i value = _mm512_permutex2var_epi16(entries_[0], entry, entries_[1]);
    const __m512i step = _mm512_permutex2var_epi16(steps_[0], entry, steps_[1]);
    const __m512i way = _mm512_slli_epi16(u, 16 - (kPoint - kEntryBits));
    const __m512i fraction = _mm512_sub_epi16(value, _mm512_mulhi_epu16(step, way));
    const __m512i code = _mm512_srlv_epi16(fraction, _mm512_srli_epi16(u, kPoint));
    const __m512i half = _mm512_set1_epi16(int16_t(1 << (after_point_ - 1)));
    return _mm512_srl_epi16(_mm512_add_epi16(code, half), _mm_cvtsi32_si128(after_point_));
  }

  int left_, right_, after_point_ = 0;  // the last: bits that entries have after the point of a code
  int32_t half_;
  __m512i peak_, multiplier_, most_, entries_[2], steps_[2];
};

// Of float scores, which a mask has been added to.
class FloatSoftmax {
 public:
  explicit FloatSoftmax(int32_t levels) : offset_(splat(std::log2(float(levels)))) {}

  void set_peak(float peak) { peak_ = splat(peak); }

  QDIFF_INLINE __m512i codes(const int32_t* scores) const {
    const __m512i low = _mm512_packs_epi32(vector(scores), vector(scores + 16));
    const __m512i high = _mm512_packs_epi32(vector(scores + 32), vector(scores + 48));
    return codes_in_order(low, high);
  }

 private:
  QDIFF_INLINE __m512i vector(const int32_t* scores) const {
    const Floats below = load_raw<Floats>(scores) - peak_;
    return __m512i(nearest(exponential2(multiply_add(below, splat(kLog2E), offset_))));
  }

  Floats peak_, offset_;
};

// Codes of `keys` keys of one row, written in stretches of 64 with zeros behind the last; scores are read in such stretches
// too. Adds to the row's sum. The softmax comes by value, so that writing codes cannot change it: its tables stay in
// registers.
template <typename Softmax>
void probability_row(const Softmax softmax, const int32_t* scores, int64_t keys, uint8_t* probs, int32_t* row_sum) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sum = _mm512_loadu_si512(row_sum);
  int64_t j = 0;
  for (; j + kStretch <= keys; j += kStretch) {
    const __m512i bytes = softmax.codes(scores + j);
    _mm512_storeu_si512(probs + j, bytes);
    sum = _mm512_dpbusd_epi32(sum, bytes, ones);
  }
  if (j < keys) {
    const __m512i bytes = _mm512_maskz_mov_epi8((uint64_t{1} << (keys - j)) - 1, softmax.codes(scores + j));
    _mm512_storeu_si512(probs + j, bytes);
    sum = _mm512_dpbusd_epi32(sum, bytes, ones);
  }
  _mm512_storeu_si512(row_sum, sum);
}

}  // namespace
}  // namespace qdiff
