// Sixteen lanes of float, in the compiler's own vectors: each instruction set that includes this gets its version.
// Everything here is local to the file that includes it.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "kernels.h"

#define QDIFF_INLINE inline __attribute__((always_inline))

namespace qdiff {
namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

// 16-bit floats as they lie in memory.
struct Half { uint16_t bits; };
struct Brain { uint16_t bits; };

template <typename V>
QDIFF_INLINE V load_raw(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

template <typename V>
QDIFF_INLINE void store_raw(void* to, const V& value) { std::memcpy(to, &value, sizeof(V)); }

QDIFF_INLINE Floats splat(float x) { return Floats{} + x; }

QDIFF_INLINE Floats select(const Ints& mask, const Floats& yes, const Floats& no) {
  return Floats((Ints(yes) & mask) | (Ints(no) & ~mask));
}

// Where the compiler does not find the one instruction by itself.
#if defined(__AVX512F__)
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
// To the nearest integer, ties to even; |x| must be below 2^31.
QDIFF_INLINE Ints nearest(const Floats& x) { return Ints(_mm512_cvtps_epi32(__m512(x))); }
QDIFF_INLINE Floats round_even(const Floats& x) { return Floats(_mm512_roundscale_ps(__m512(x), 0)); }
#else
QDIFF_INLINE Floats at_least(const Floats& x, float low) { return select(Ints(x > low), x, splat(low)); }
QDIFF_INLINE Floats at_most(const Floats& x, float high) { return select(Ints(x < high), x, splat(high)); }
QDIFF_INLINE Floats multiply_add(const Floats& x, const Floats& y, const Floats& z) { return x * y + z; }
QDIFF_INLINE Floats reciprocal(const Floats& x) { return 1.0f / x; }
// Exact for |x| below 2^22, and that is all it is used for.
QDIFF_INLINE Floats round_even(const Floats& x) {
  const Floats magic = splat(12582912.0f);  // 1.5 * 2^23: its last bit is worth one
  return (x + magic) - magic;
}
QDIFF_INLINE Ints nearest(const Floats& x) { return __builtin_convertvector(round_even(x), Ints); }
#endif

// ------------------------------------------------------------------------------------------ 16-bit floats

QDIFF_INLINE Floats widen_half(const Halves& h) {
#if defined(__AVX512F__)
  return Floats(_mm512_cvtph_ps(__m256i(h)));
#elif defined(__F16C__)
  Floats out;
  const __m128i low = load_raw<__m128i>(&h), high = load_raw<__m128i>(reinterpret_cast<const char*>(&h) + 16);
  store_raw(&out, _mm256_cvtph_ps(low));
  store_raw(reinterpret_cast<char*>(&out) + 32, _mm256_cvtph_ps(high));
  return out;
#else
  // Shift the exponent into place and multiply the difference of the biases away; that is exact, subnormals too.
  const Words w = __builtin_convertvector(h, Words);
  const Floats magnitude = Floats((w & 0x7fffu) << 13) * 0x1p112f;
  const Ints special = Ints(magnitude >= 65536.0f);
  const Words bits = Words(magnitude) | (Words(special) & 0x7f800000u) | ((w & 0x8000u) << 16);
  return Floats(bits);
#endif
}

QDIFF_INLINE Halves narrow_half(const Floats& x) {
#if defined(__AVX512F__)
  return Halves(_mm512_cvtps_ph(__m512(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  Halves out;
  const __m256 low = load_raw<__m256>(&x), high = load_raw<__m256>(reinterpret_cast<const char*>(&x) + 32);
  store_raw(&out, _mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT));
  store_raw(reinterpret_cast<char*>(&out) + 16, _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT));
  return out;
#else
  const Words bits = Words(x), sign = (bits >> 16) & 0x8000u;
  const Floats magnitude = Floats(bits & 0x7fffffffu);
  // Adding 0.5 ulp-aligned constants rounds to nearest even: below 2^-14 to multiples of 2^-24 ...
  const Words small = Words(magnitude + 0.5f) - 0x3f000000u;
  // ... above by carry into the kept bits.
  const Words m = Words(magnitude);
  const Words normal = (m + 0xfffu + ((m >> 13) & 1u) - (112u << 23)) >> 13;
  Words out = Words((Ints(small) & Ints(magnitude < 0x1p-14f)) | (Ints(normal) & ~Ints(magnitude < 0x1p-14f)));
  const Ints huge = Ints(magnitude >= 65520.0f), nan = Ints(magnitude != magnitude);
  out = Words((Ints(out) & ~huge) | (0x7c00 & huge));
  out = Words((Ints(out) & ~nan) | (0x7e00 & nan));
  return __builtin_convertvector(out | sign, Halves);
#endif
}

QDIFF_INLINE Floats load(const float* from) { return load_raw<Floats>(from); }
QDIFF_INLINE Floats load(const Half* from) { return widen_half(load_raw<Halves>(from)); }
QDIFF_INLINE Floats load(const Brain* from) {
  return Floats(__builtin_convertvector(load_raw<Halves>(from), Words) << 16);
}

QDIFF_INLINE void store(float* to, const Floats& x) { store_raw(to, x); }
QDIFF_INLINE void store(Half* to, const Floats& x) { store_raw(to, narrow_half(x)); }
QDIFF_INLINE void store(Brain* to, const Floats& x) {
  const Words bits = Words(x);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Ints nan = Ints(x != x);
  store_raw(to, __builtin_convertvector(Words((Ints(rounded) & ~nan) | (0x7fc0 & nan)), Halves));
}

// All lanes, known when compiling where a vector is one register; elsewhere the code would only become twice as long.
#if defined(__AVX512F__)
struct AllLanes {
  constexpr operator int64_t() const { return kLanes; }
};
QDIFF_INLINE AllLanes all_lanes() { return {}; }
#else
QDIFF_INLINE int64_t all_lanes() { return kLanes; }
#endif

// Calls with each stretch of up to 16 of `channels` channels: (first of them, how many).
template <typename Visit>
QDIFF_INLINE void each_stretch(int64_t channels, const Visit& visit) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) visit(c, all_lanes());
  if (c < channels) visit(c, channels - c);
}

// The first `count` lanes; the others are zero. `Element` is float, Half or Brain.
template <typename Element>
QDIFF_INLINE Floats load_some(const Element* from, int64_t count) {
  if (count >= kLanes) return load(from);
  alignas(64) Element buffer[kLanes] = {};
  std::memcpy(buffer, from, count * sizeof(Element));
  return load(buffer);
}

template <typename Element>
QDIFF_INLINE void store_some(Element* to, const Floats& x, int64_t count) {
  if (count >= kLanes) return store(to, x);
  alignas(64) Element buffer[kLanes];
  store(buffer, x);
  std::memcpy(to, buffer, count * sizeof(Element));
}

QDIFF_INLINE void store_codes(void* to, const Bytes& codes, int64_t count) {
  if (count >= kLanes) return store_raw(to, codes);
  std::memcpy(to, &codes, count);
}

// Writes vectors in the form they have in memory: `Element` is float, Half, Brain, or uint8_t for codes.
template <typename Element>
struct Output {
  Element* out;
  int32_t zero_point;
  float low, high, inverse_scale;

  Output(void* to, const Quantizer& q)
      : out(static_cast<Element*>(to)),
        zero_point(q.zero_point),
        low(float(q.low - q.zero_point)),
        high(float(q.high - q.zero_point)),
        inverse_scale(1.0f / q.scale) {}

  // Codes less the zero-point. The bounds are whole numbers, so it does not matter that they come before the rounding; NaN
  // becomes the lowest.
  QDIFF_INLINE Ints steps(const Floats& x) const { return nearest(at_most(at_least(x * inverse_scale, low), high)); }

  template <typename Count>
  QDIFF_INLINE void write(int64_t index, const Floats& x, Count count) const {
    if constexpr (std::is_same_v<Element, uint8_t>) {
      store_codes(out + index, __builtin_convertvector(steps(x) + zero_point, Bytes), count);
    } else {
      store_some(out + index, x, count);
    }
  }
};

// Writes the codes of what those of another quantizer leave over.
struct RestOutput {
  Output<uint8_t> codes, rest;
  float scale;

  RestOutput(void* to, const Quantizer& coarse, const Quantizer& fine)
      : codes(nullptr, coarse), rest(to, fine), scale(coarse.scale) {}

  template <typename Count>
  QDIFF_INLINE void write(int64_t index, const Floats& x, Count count) const {
    rest.write(index, x - __builtin_convertvector(codes.steps(x), Floats) * scale, count);
  }
};

// Calls with the Output of that type.
template <typename Use>
QDIFF_INLINE void with_output(void* to, Type type, const Quantizer& quantizer, const Use& use) {
  switch (type) {
    case Type::f32: return use(Output<float>(to, quantizer));
    case Type::f16: return use(Output<Half>(to, quantizer));
    case Type::bf16: return use(Output<Brain>(to, quantizer));
    default: return use(Output<uint8_t>(to, quantizer));
  }
}

// Reads vectors in whichever form they have in memory.
struct Input {
  const void* in;
  Type type;

  template <typename Count>
  QDIFF_INLINE Floats read(int64_t index, Count count) const {
    switch (type) {
      case Type::f32: return load_some(static_cast<const float*>(in) + index, count);
      case Type::f16: return load_some(static_cast<const Half*>(in) + index, count);
      default: return load_some(static_cast<const Brain*>(in) + index, count);
    }
  }
};

// An input of the form that numbers have between kernels; where that pays it does not ask for the form.
#if defined(__AVX512F__)
struct HalfInput {
  const Half* in;

  HalfInput(const void* from, Type) : in(static_cast<const Half*>(from)) {}

  template <typename Count>
  QDIFF_INLINE Floats read(int64_t index, Count count) const { return load_some(in + index, count); }
};
#else
using HalfInput = Input;
#endif

}  // namespace
}  // namespace qdiff
