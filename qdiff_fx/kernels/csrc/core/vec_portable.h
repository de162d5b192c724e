// Sixteen lanes in four registers of 128 bits, in plain C++.
#pragma once

#include <cstdint>
#include <cstring>

namespace qdiff {
namespace {
constexpr int kRegisterBytes = 16;
}  // namespace
}  // namespace qdiff

#include "core/lanes.h"

namespace qdiff {
namespace {

// x, but at least low; low where x is NaN.
QDIFF_INLINE Floats at_least(const Floats& x, float low) {
  return by_parts<float>(x, [&](const auto& a) { return a > low ? a : Floats::Part{} + low; });
}
QDIFF_INLINE Floats at_most(const Floats& x, float high) {
  return by_parts<float>(x, [&](const auto& a) { return a < high ? a : Floats::Part{} + high; });
}
QDIFF_INLINE Floats multiply_add(const Floats& x, const Floats& y, const Floats& z) { return x * y + z; }
QDIFF_INLINE Floats reciprocal(const Floats& x) { return 1.0f / x; }
QDIFF_INLINE Floats square_root(const Floats& x) {
  return by_parts<float>(x, [](auto a) {
    for (int i = 0; i < int(sizeof(a) / sizeof(float)); ++i) a[i] = __builtin_sqrtf(a[i]);
    return a;
  });
}
// Exact for |x| below 2^22, and that is all it is used for.
QDIFF_INLINE Floats round_even(const Floats& x) {
  const Floats magic = splat(12582912.0f);  // 1.5 * 2^23: its last bit is worth one
  return (x + magic) - magic;
}
// To the nearest integer, ties to even; |x| must be below 2^22.
QDIFF_INLINE Ints nearest(const Floats& x) {
  return by_parts<int32_t>(round_even(x), [](const auto& a) { return __builtin_convertvector(a, Ints::Part); });
}

typedef uint8_t FourBytes __attribute__((vector_size(4)));
typedef uint16_t FourHalves __attribute__((vector_size(8)));

// The lowest byte of each.
QDIFF_INLINE Bytes to_bytes(const Ints& x) {
  Bytes out;
  for (int i = 0; i < Ints::kParts; ++i) {
    const auto four = __builtin_convertvector(x.at[i], FourBytes);
    std::memcpy(reinterpret_cast<char*>(&out) + 4 * i, &four, sizeof(four));
  }
  return out;
}

QDIFF_INLINE Ints widen_codes(const Bytes& x) {
  typedef int8_t FourCodes __attribute__((vector_size(4)));
  Ints out;
  for (int i = 0; i < Ints::kParts; ++i) {
    FourCodes four;
    std::memcpy(&four, reinterpret_cast<const char*>(&x) + sizeof(four) * i, sizeof(four));
    out.at[i] = __builtin_convertvector(four, Ints::Part);
  }
  return out;
}

QDIFF_INLINE Words widen(const Halves& x) {
  Words out;
  for (int i = 0; i < Words::kParts; ++i) {
    FourHalves four;
    std::memcpy(&four, reinterpret_cast<const char*>(&x) + sizeof(four) * i, sizeof(four));
    out.at[i] = __builtin_convertvector(four, Words::Part);
  }
  return out;
}

// The lower half of each.
QDIFF_INLINE Halves narrow(const Words& x) {
  Halves out;
  for (int i = 0; i < Words::kParts; ++i) {
    const auto four = __builtin_convertvector(x.at[i], FourHalves);
    std::memcpy(reinterpret_cast<char*>(&out) + sizeof(four) * i, &four, sizeof(four));
  }
  return out;
}

QDIFF_INLINE Floats widen_half(const Halves& h) {
  // Shift the exponent into place and multiply the difference of the biases away; that is exact, subnormals too.
  const Words w = widen(h);
  const Floats magnitude = Floats((w & 0x7fffu) << 13) * 0x1p112f;
  const Ints special = magnitude >= 65536.0f;
  const Words bits = Words(magnitude) | (Words(special) & 0x7f800000u) | ((w & 0x8000u) << 16);
  return Floats(bits);
}

QDIFF_INLINE Halves narrow_half(const Floats& x) {
  const Words bits = Words(x), sign = (bits >> 16) & 0x8000u;
  const Floats magnitude = Floats(bits & 0x7fffffffu);
  // Adding 0.5 ulp-aligned constants rounds to nearest even: below 2^-14 to multiples of 2^-24 ...
  const Words small = Words(magnitude + 0.5f) - 0x3f000000u;
  // ... above by carry into the kept bits.
  const Words m = Words(magnitude);
  const Words normal = (m + 0xfffu + ((m >> 13) & 1u) - (112u << 23)) >> 13;
  Words out = Words((Ints(small) & (magnitude < 0x1p-14f)) | (Ints(normal) & ~(magnitude < 0x1p-14f)));
  const Ints huge = magnitude >= 65520.0f, nan = magnitude != magnitude;
  out = Words((Ints(out) & ~huge) | (0x7c00 & huge));
  out = Words((Ints(out) & ~nan) | (0x7e00 & nan));
  return narrow(out | sign);
}

}  // namespace
}  // namespace qdiff
