// The instruction that everything turns on. Include after vec.h, in files compiled with -mavx512vnni.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "core/vec.h"

namespace qdiff {
namespace {

// acc += four-byte dot products of unsigned and signed bytes. As an intrinsic GCC 12 gives each result a new
// register and copies it back, spilling the tile: 40 % slower. The tied operand of the asm prevents that.
QDIFF_INLINE void dot_accumulate(__m512i& acc, __m512i u8, __m512i s8) {
#if defined(__GNUC__) && !defined(__clang__)
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u8), "v"(s8));
#else
  acc = _mm512_dpbusd_epi32(acc, u8, s8);
#endif
}

// acc += dot products of pairs of 16-bit numbers; sums wrap.
QDIFF_INLINE void dot_pairs(__m512i& acc, __m512i x, __m512i y) {
#if defined(__GNUC__) && !defined(__clang__)
  asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(y));
#else
  acc = _mm512_dpwssd_epi32(acc, x, y);
#endif
}

QDIFF_INLINE __m512i broadcast_quad(const uint8_t* bytes) {
  int32_t quad;
  std::memcpy(&quad, bytes, sizeof(quad));
  return _mm512_set1_epi32(quad);
}

}  // namespace
}  // namespace qdiff
