// Sixteen lanes in one register of AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace qdiff {
namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

template <typename V>
QDIFF_INLINE V load_raw(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

template <typename V>
QDIFF_INLINE void store_raw(void* to, const V& value) { std::memcpy(to, &value, sizeof(V)); }

QDIFF_INLINE Floats splat(float x) { return Floats{} + x; }
QDIFF_INLINE Ints lane_numbers() { return Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }
QDIFF_INLINE Floats to_floats(const Ints& x) { return __builtin_convertvector(x, Floats); }
// The lowest byte of each.
QDIFF_INLINE Bytes to_bytes(const Ints& x) { return __builtin_convertvector(x, Bytes); }
QDIFF_INLINE Ints widen_codes(const Bytes& x) { return Ints(_mm512_cvtepi8_epi32(__m128i(x))); }
QDIFF_INLINE Words widen(const Halves& x) { return __builtin_convertvector(x, Words); }
// The lower half of each.
QDIFF_INLINE Halves narrow(const Words& x) { return __builtin_convertvector(x, Halves); }

// Where the compiler does not find the one instruction by itself.
// x, but at least low; low where x is NaN.
QDIFF_INLINE Floats at_least(const Floats& x, float low) { return Floats(_mm512_max_ps(__m512(x), _mm512_set1_ps(low))); }
QDIFF_INLINE Floats at_most(const Floats& x, float high) { return Floats(_mm512_min_ps(__m512(x), _mm512_set1_ps(high))); }
QDIFF_INLINE Floats multiply_add(const Floats& x, const Floats& y, const Floats& z) {
  return Floats(_mm512_fmadd_ps(__m512(x), __m512(y), __m512(z)));
}
// To about 2 ulp; |x| must be a normal number below 2^126.
QDIFF_INLINE Floats reciprocal(const Floats& x) {
  const Floats r = Floats(_mm512_rcp14_ps(__m512(x)));
  return r * multiply_add(-x, r, Floats{} + 2.0f);
}
QDIFF_INLINE Floats square_root(const Floats& x) { return Floats(_mm512_sqrt_ps(__m512(x))); }
// To the nearest integer, ties to even; |x| must be below 2^31.
QDIFF_INLINE Ints nearest(const Floats& x) { return Ints(_mm512_cvtps_epi32(__m512(x))); }
QDIFF_INLINE Floats round_even(const Floats& x) { return Floats(_mm512_roundscale_ps(__m512(x), 0)); }

QDIFF_INLINE Floats widen_half(const Halves& h) { return Floats(_mm512_cvtph_ps(__m256i(h))); }
QDIFF_INLINE Halves narrow_half(const Floats& x) {
  return Halves(_mm512_cvtps_ph(__m512(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

}  // namespace
}  // namespace qdiff
