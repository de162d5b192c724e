// Sixteen lanes in two registers of AVX2. Products and sums are rounded one by one, as in plain C++: so results are those of
// the portable kernels.
#pragma once

#include <immintrin.h>

namespace qdiff {
namespace {
constexpr int kRegisterBytes = 32;
}  // namespace
}  // namespace qdiff

#include "core/lanes.h"

namespace qdiff {
namespace {

// x, but at least low; low where x is NaN.
QDIFF_INLINE Floats at_least(const Floats& x, float low) {
  return by_parts<float>(x, [&](__m256 a) { return _mm256_max_ps(a, _mm256_set1_ps(low)); });
}
QDIFF_INLINE Floats at_most(const Floats& x, float high) {
  return by_parts<float>(x, [&](__m256 a) { return _mm256_min_ps(a, _mm256_set1_ps(high)); });
}
QDIFF_INLINE Floats multiply_add(const Floats& x, const Floats& y, const Floats& z) { return x * y + z; }
QDIFF_INLINE Floats reciprocal(const Floats& x) { return 1.0f / x; }
QDIFF_INLINE Floats square_root(const Floats& x) {
  return by_parts<float>(x, [](__m256 a) { return _mm256_sqrt_ps(a); });
}
// To the nearest integer, ties to even; |x| must be below 2^31.
QDIFF_INLINE Floats round_even(const Floats& x) {
  return by_parts<float>(x, [](__m256 a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); });
}
QDIFF_INLINE Ints nearest(const Floats& x) {
  return by_parts<int32_t>(x, [](__m256 a) { return Ints::Part(_mm256_cvtps_epi32(a)); });
}

// The lower halves of words. Packing works within 128 bits: they come out as those of 0-3 8-11 4-7 12-15.
QDIFF_INLINE __m256i pack(const Words& x, uint32_t mask) {
  const __m256i kept = _mm256_set1_epi32(int32_t(mask));
  return _mm256_packus_epi32(_mm256_and_si256(__m256i(x.at[0]), kept), _mm256_and_si256(__m256i(x.at[1]), kept));
}

// The lowest byte of each.
QDIFF_INLINE Bytes to_bytes(const Ints& x) {
  const __m256i words = pack(Words(x), 0xff);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  return Bytes(_mm_shuffle_epi32(bytes, 0xd8));
}

QDIFF_INLINE Ints widen_codes(const Bytes& x) {
  Ints out;
  out.at[0] = Ints::Part(_mm256_cvtepi8_epi32(__m128i(x)));
  out.at[1] = Ints::Part(_mm256_cvtepi8_epi32(_mm_srli_si128(__m128i(x), 8)));
  return out;
}

QDIFF_INLINE Words widen(const Halves& x) {
  Words out;
  out.at[0] = Words::Part(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(__m256i(x.at[0]))));
  out.at[1] = Words::Part(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(__m256i(x.at[0]), 1)));
  return out;
}

// The lower half of each.
QDIFF_INLINE Halves narrow(const Words& x) {
  Halves out;
  out.at[0] = Halves::Part(_mm256_permute4x64_epi64(pack(x, 0xffff), 0xd8));
  return out;
}

QDIFF_INLINE Floats widen_half(const Halves& h) {
  Floats out;
  out.at[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(__m256i(h.at[0])));
  out.at[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(__m256i(h.at[0]), 1));
  return out;
}

QDIFF_INLINE Halves narrow_half(const Floats& x) {
  const __m128i low = _mm256_cvtps_ph(x.at[0], _MM_FROUND_TO_NEAREST_INT);
  const __m128i high = _mm256_cvtps_ph(x.at[1], _MM_FROUND_TO_NEAREST_INT);
  Halves out;
  out.at[0] = Halves::Part(_mm256_set_m128i(high, low));
  return out;
}

}  // namespace
}  // namespace qdiff
