// Sixteen lanes of float, in one register or several: each instruction set that includes this gets its version.
// Everything here is local to the file that includes it.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/kernels.h"

// Sanitizers look at every operation, and compilers take a quarter of an hour over it where all is one function.
#if defined(__SANITIZE_ADDRESS__)
#define QDIFF_INLINE inline
#else
#define QDIFF_INLINE inline __attribute__((always_inline))
#endif

#if defined(__AVX512F__)
#include "isa/vec_avx512.h"
#elif defined(__AVX2__)
#include "isa/vec_avx2.h"
#elif defined(__aarch64__)
#include "isa/vec_neon.h"
#else
#include "core/vec_portable.h"
#endif

namespace qdiff {
namespace {

// 16-bit floats as they lie in memory.
struct Half { uint16_t bits; };
struct Brain { uint16_t bits; };

constexpr int64_t bytes_of(Type type) { return type == Type::f32 ? 4 : type == Type::f16 || type == Type::bf16 ? 2 : 1; }

QDIFF_INLINE Floats select(const Ints& mask, const Floats& yes, const Floats& no) {
  return Floats((Ints(yes) & mask) | (Ints(no) & ~mask));
}

QDIFF_INLINE Floats load(const float* from) { return load_raw<Floats>(from); }
QDIFF_INLINE Floats load(const Half* from) { return widen_half(load_raw<Halves>(from)); }
QDIFF_INLINE Floats load(const Brain* from) {
  return Floats(widen(load_raw<Halves>(from)) << 16);
}

QDIFF_INLINE void store(float* to, const Floats& x) { store_raw(to, x); }
QDIFF_INLINE void store(Half* to, const Floats& x) { store_raw(to, narrow_half(x)); }
QDIFF_INLINE void store(Brain* to, const Floats& x) {
  const Words bits = Words(x);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Ints nan = Ints(x != x);
  store_raw(to, narrow(Words((Ints(rounded) & ~nan) | (0x7fc0 & nan))));
}

// All lanes, known when compiling, where a vector is one register or two; elsewhere the code would only become twice as long.
#if defined(__AVX2__)
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

// Signed codes; the lanes beyond `count` are zero.
QDIFF_INLINE Floats load_codes(const int8_t* from, int64_t count) {
  if (count >= kLanes) return to_floats(widen_codes(load_raw<Bytes>(from)));
  Bytes codes = {};
  std::memcpy(&codes, from, count);
  return to_floats(widen_codes(codes));
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
      store_codes(out + index, to_bytes(steps(x) + zero_point), count);
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
    rest.write(index, x - to_floats(codes.steps(x)) * scale, count);
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
#if defined(__AVX2__)
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
