// Weights as the tiles of AVX2 read them: a thread copies those of a block of output channels, vector after vector, so that a
// tile reads on and on; 4-bit codes become bytes, and the weights themselves tell how many products fit into 16 bits.
#pragma once

#include "isa/tile_avx2.h"

namespace qdiff {
namespace {

class Weights {
 public:
  Weights(const Conv& p, bool all_blocks) : p_(p), memory_(p, all_blocks) {}

  void choose(int64_t block) {
    memory_.choose(block, [&](int64_t each) {
      for (int64_t i = 0; i < p_.source_count; ++i) {
        if (copies(p_, i)) copy_block(i, each);
      }
    });
  }

  void dot(int64_t source, int64_t block, const Rows* rows, int64_t row_count, const int32_t* start, int32_t* acc) const {
    const int64_t vectors = vectors_of_block(p_, block), count = groups(p_, source);
    Panel panel{stored_weights(p_, source, block), kVectorBytes, vectors * kVectorBytes, 0};
    if (copies(p_, source)) {
      const int8_t* copy = memory_.of(source, block);
      panel = {copy + kHead, count * kVectorBytes, kVectorBytes, copy[0]};
    }
    dot_panel(rows, p_.kernel_h * p_.kernel_w, p_.sources[source].quads, panel, row_count, vectors, start, acc);
  }

 private:
  static constexpr int64_t kHead = 64;  // bytes before the weights, the first of which is their window

  static int64_t groups(const Conv& p, int64_t source) { return p.kernel_h * p.kernel_w * p.sources[source].quads; }

  // A copy pays where it is read a few times.
  static bool copies(const Conv& p, int64_t source) {
    return p.sources[source].nibbles || pixel_count(p) >= 4 * kTileRows;
  }

  struct Bytes {
    static int64_t bytes(const Conv& p, int64_t source) {
      return copies(p, source) ? kHead + panel_bytes(p, source, kBlockVectors) : 0;
    }
  };

  void copy_block(int64_t source, int64_t block) {
    const int8_t* from = stored_weights(p_, source, block);
    int8_t* to = memory_.of(source, block);
    const int64_t vectors = vectors_of_block(p_, block), count = groups(p_, source);
    if (p_.sources[source].nibbles) {
      to[0] = int8_t(window_of(3));
      return unpack(from, count, vectors, to + kHead);
    }
    to[0] = int8_t(window_of(copy(from, count, vectors, to + kHead)));
  }

  // Returns the bits of the largest, without its sign.
  static int copy(const int8_t* from, int64_t count, int64_t vectors, int8_t* to) {
    __m256i all = _mm256_setzero_si256();
    for (int64_t group = 0; group < count; ++group) {
      for (int64_t v = 0; v < vectors; ++v, from += kVectorBytes) {
        for (int64_t half = 0; half < kVectorBytes; half += 32) {
          const __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + half));
          all = _mm256_or_si256(all, _mm256_xor_si256(some, _mm256_cmpgt_epi8(_mm256_setzero_si256(), some)));
          _mm256_store_si256(reinterpret_cast<__m256i*>(to + (v * count + group) * kVectorBytes + half), some);
        }
      }
    }
    alignas(32) uint8_t bytes[32];
    _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), all);
    int most = 0, bits = 0;
    for (const uint8_t byte : bytes) most |= byte;
    while (most >> bits) ++bits;
    return bits;
  }

  static void unpack(const int8_t* from, int64_t count, int64_t vectors, int8_t* to) {
    const __m256i low = _mm256_set1_epi8(15), sign = _mm256_set1_epi8(8);
    for (int64_t group = 0; group < count; ++group) {
      for (int64_t v = 0; v < vectors; ++v) {
        const int8_t* pair = from + v / 2 * kVectorBytes;
        for (int64_t half = 0; half < kVectorBytes; half += 32) {
          __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pair + half));
          if (v % 2) some = _mm256_srli_epi16(some, 4);
          some = _mm256_sub_epi8(_mm256_xor_si256(_mm256_and_si256(some, low), sign), sign);
          _mm256_store_si256(reinterpret_cast<__m256i*>(to + (v * count + group) * kVectorBytes + half), some);
        }
      }
      from += nibble_bytes(vectors);
    }
  }

  const Conv& p_;
  WeightMemory<Bytes> memory_;
};

}  // namespace
}  // namespace qdiff
