// From scores to probability codes, round(levels * exp(score - peak)), 64 at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/activations.h"
#include "isa/avx512.h"

// Tiles live apart from the code around them, so all 32 registers are theirs.
#define QDIFF_NOINLINE __attribute__((noinline))

namespace qdiff {
namespace {

constexpr int64_t kStretch = 64;
constexpr int64_t kStretchesAhead = 16;  // of the one whose codes are computed, scores come from L2

// Codes of a stretch are written in the order that packing leaves them in, two instructions cheaper than that of the keys.
// Byte `place` is the code of this key: 16-bit codes of keys 0-31 are the lower bytes, those of keys 32-63 the upper ones, and
// packing takes four keys of the first sixteen, then four of the next, in turn.
inline int64_t key_at(int64_t place) {
  const int64_t lane = place / 16, of_lane = place % 16;
  return of_lane % 2 * 32 + of_lane / 8 * 16 + lane * 4 + of_lane % 8 / 2;
}

// Such bytes in the order of the keys.
QDIFF_INLINE __m512i in_order_of_keys(__m512i codes) {
  const __m512i by_fours = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_shuffle_epi8(codes, by_fours));
}

// Of integer scores, in 16-bit fixed point: the codes need 8 bits, and so twice as many fit into a register as floats.
// A code is within 5e-4 of itself before it is rounded.
//
// The distance u = (peak - score) * scale of base-2 exponents has 11 bits after the point and is at most 16, where codes
// are long zero. Of 2^-u, a table has the first 6 bits after the point, a straight line to the next entry the other 5,
// and a shift the integer part.
//
// All is shifted by vectors of counts: a count in a register of its own would take a second operation.
class FixedPoint {
 public:
  // scale: of one integer step of the scores, positive; in units of base-2 exponents.
  FixedPoint(double scale, int32_t levels) {
    // A distance of 16 bits times a multiplier of 16 bits, the upper half kept: shifted so that neither loses bits.
    const int exponent = exponent_of(scale);
    const int left = std::clamp(exponent, 0, kMostLeft), right = std::clamp(-exponent, 0, 31);
    const double multiplier = std::ldexp(scale, 16 + kPoint - left + right);
    multiplier_ = words(int(std::lround(std::min(65535.0, multiplier))));
    half_ = right > 0 ? 1 << (right - 1) : 0;
    left_ = words(left), right_ = _mm512_set1_epi32(right), most_ = words(65535 >> left);
    make_tables(levels);
  }

  // Whether distances are so few steps that they are shifted to the left.
  static bool shifts_left(double scale) { return exponent_of(scale) > 0; }

  // Of a row's maximum: from where on distances are measured, for set_peak.
  void take_peak(int32_t* peak) const { *peak += half_; }

  QDIFF_INLINE void set_peak(const int32_t* peak) { peak_ = _mm512_set1_epi32(*peak); }

 protected:
  template <bool kLeft>
  QDIFF_INLINE __m512i codes(const int32_t* scores) const {
    const __m512i low = pair<kLeft>(scores), high = pair<kLeft>(scores + 32);
    // (upper & 0xff00) | lower
    return _mm512_ternarylogic_epi32(_mm512_srlv_epi16(high, after_byte_), _mm512_set1_epi16(int16_t(0xff00)),
                                     _mm512_srlv_epi16(low, after_code_), 0xea);
  }

 private:
  static constexpr int kPoint = 11;     // bits after the point
  static constexpr int kEntryBits = 6;  // of them in the table
  static constexpr int kEntries = 1 << kEntryBits;
  static constexpr int kMostLeft = 15;

  static int exponent_of(double scale) {
    if (scale <= 0) return -64;
    return std::isinf(scale) ? kMostLeft : std::ilogb(scale) + kPoint + 1;
  }

  static __m512i words(int x) { return _mm512_set1_epi16(int16_t(x)); }

  void make_tables(int32_t levels) {
    int after_point = 8;  // bits that entries have after the point of a code
    while (int64_t{levels} << (after_point + 1) < 65536) ++after_point;
    alignas(64) uint16_t entries[kEntries + 1], steps[kEntries];
    for (int i = 0; i <= kEntries; ++i) {
      // The product's lower half is cut off: half a unit on the average.
      const double u = double(i) / kEntries + std::ldexp(0.5, -kPoint);
      entries[i] = uint16_t(std::lround(std::ldexp(levels * std::exp2(-u), after_point)));
    }
    for (int i = 0; i < kEntries; ++i) steps[i] = uint16_t(entries[i] - entries[i + 1]);
    for (int i = 0; i < 2; ++i) {
      entries_[i] = _mm512_loadu_si512(entries + i * 32);
      steps_[i] = _mm512_loadu_si512(steps + i * 32);
    }
    half_code_ = words(1 << (after_point - 1)), after_code_ = words(after_point), after_byte_ = words(after_point - 8);
  }

  QDIFF_INLINE __m512i distance(const int32_t* scores) const {
    return _mm512_sub_epi32(peak_, _mm512_loadu_si512(scores));
  }

  // 32 codes of 16 bits, with bits after their points that are to be cut off.
  template <bool kLeft>
  QDIFF_INLINE __m512i pair(const int32_t* scores) const {
    __m512i far;
    if constexpr (kLeft) {
      far = _mm512_packus_epi32(distance(scores), distance(scores + 16));
      far = _mm512_sllv_epi16(_mm512_min_epu16(far, most_), left_);
    } else {
      far = _mm512_packus_epi32(_mm512_srlv_epi32(distance(scores), right_),
                                _mm512_srlv_epi32(distance(scores + 16), right_));
    }
    const __m512i u = _mm512_mulhi_epu16(far, multiplier_);
    const __m512i entry = _mm512_srli_epi16(u, kPoint - kEntryBits);  // of which the lookup takes the last 6 bits
    const __m512i value = _mm512_permutex2var_epi16(entries_[0], entry, entries_[1]);
    const __m512i step = _mm512_permutex2var_epi16(steps_[0], entry, steps_[1]);
    const __m512i way = _mm512_slli_epi16(u, 16 - (kPoint - kEntryBits));
    const __m512i fraction = _mm512_sub_epi16(value, _mm512_mulhi_epu16(step, way));
    return _mm512_add_epi16(_mm512_srlv_epi16(fraction, _mm512_srli_epi16(u, kPoint)), half_code_);
  }

  int32_t half_;
  __m512i peak_, multiplier_, left_, right_, most_, entries_[2], steps_[2], half_code_, after_code_, after_byte_;
};

template <bool kLeft>
struct FixedSoftmax : FixedPoint {
  using FixedPoint::FixedPoint;

  // Of 64 scores, in the order of key_at.
  QDIFF_INLINE __m512i codes(const int32_t* scores) const { return FixedPoint::codes<kLeft>(scores); }
};

// Of float scores, which a mask has been added to; those of rows that are hidden as a whole are 0.
class FloatSoftmax {
 public:
  explicit FloatSoftmax(int32_t levels) : offset_(splat(std::log2(float(levels)))) {}

  void take_peak(int32_t*) const {}

  QDIFF_INLINE void set_peak(const int32_t* peak) {
    float x;
    std::memcpy(&x, peak, sizeof(x));
    seen_ = std::isinf(x) ? 0 : -1;
    peak_ = splat(x);
  }

  QDIFF_INLINE __m512i codes(const int32_t* scores) const {
    const __m512i low = _mm512_packs_epi32(vector(scores), vector(scores + 16));
    const __m512i high = _mm512_packs_epi32(vector(scores + 32), vector(scores + 48));
    return _mm512_and_si512(_mm512_or_si512(low, _mm512_slli_epi16(high, 8)), _mm512_set1_epi8(seen_));
  }

 private:
  QDIFF_INLINE __m512i vector(const int32_t* scores) const {
    const Floats below = load_raw<Floats>(scores) - peak_;
    return __m512i(nearest(exponential2(multiply_add(below, splat(kLog2E), offset_))));
  }

  int8_t seen_;
  Floats peak_, offset_;
};

// Some rows' scores, and where their probabilities go.
struct RowBlock {
  const int32_t* scores;  // [stretch][stride][64]
  int64_t stride, rows;
  const int32_t* peaks;  // [row][16], in the first lane what take_peak made of the row's maximum
  uint8_t* codes;        // [row][codes_stride]
  int64_t codes_stride;
  int32_t* sums;  // [row][16], which those of the codes are added to
};

// Codes of `keys` keys, in the order of key_at; those of the last keys, fewer than a stretch, in order and with zeros behind.
// Scores are read in whole stretches. One loop over rows of all tables in registers: of one row at a time, they would be
// loaded for each.
template <typename Softmax>
QDIFF_NOINLINE void write_codes(const Softmax& shared, const RowBlock& b, int64_t keys) {
  Softmax softmax = shared;  // that writing codes cannot change
  const __m512i ones = _mm512_set1_epi8(1);
  const auto write = [&](int64_t r, int64_t first, __m512i codes) {
    _mm512_storeu_si512(b.codes + r * b.codes_stride + first, codes);
    int32_t* sum = b.sums + r * kLanes;
    _mm512_storeu_si512(sum, _mm512_dpbusd_epi32(_mm512_loadu_si512(sum), codes, ones));
  };
  int64_t j = 0;
  const int32_t* scores = b.scores;
  for (; j + kStretch <= keys; j += kStretch, scores += b.stride * kStretch) {
    for (int64_t r = 0; r < b.rows; ++r) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < kStretch; i += kLanes) __builtin_prefetch(scores + (r + kStretchesAhead) * kStretch + i);
      softmax.set_peak(b.peaks + r * kLanes);
      write(r, j, softmax.codes(scores + r * kStretch));
    }
  }
  if (j == keys) return;
  const __mmask64 seen = (uint64_t{1} << (keys - j)) - 1;
  for (int64_t r = 0; r < b.rows; ++r) {
    softmax.set_peak(b.peaks + r * kLanes);
    write(r, j, _mm512_maskz_mov_epi8(seen, in_order_of_keys(softmax.codes(scores + r * kStretch))));
  }
}

}  // namespace
}  // namespace qdiff
