// Packed weights, transformed: G g G' of every pair of channels, position by position.
#pragma once

#include "core/winograd_plan.h"

namespace qdiff {
namespace {

// The packed weights of a panel: [tap][quad][vectors][16][4], in nibbles or not.
struct PackedPanel {
  const int8_t* first;
  int64_t quad, tap;  // bytes from one to the next
  bool nibbles;

  PackedPanel(const Conv& p, int64_t source, int64_t panel)
      : first(stored_weights(p, source, panel)), nibbles(p.sources[source].nibbles) {
    const int64_t vectors = vectors_of_block(p, panel);
    quad = nibbles ? nibble_bytes(vectors) : vectors * kVectorBytes;
    tap = p.sources[source].quads * quad;
  }

  const int8_t* at(int64_t vector, int64_t quad_index) const {
    return first + quad_index * quad + (nibbles ? vector / 2 : vector) * kVectorBytes;
  }
};

// Shifts that leave, of 16-bit words of packed weights, those at even places or (Odd) at odd ones, as 16-bit numbers.
template <bool Nibbles, bool Upper, bool Odd>
QDIFF_INLINE Shorts unpacked(const int8_t* from) {
  constexpr int up = Nibbles ? (Odd ? 4 : 12) - (Upper ? 4 : 0) : (Odd ? 0 : 8);
  return (load_raw<Shorts>(from) << up) >> (Nibbles ? 12 : 8);
}

// The weights of a quad in a register's worth of output channels, one of every two, at half of the positions.
template <bool Nibbles, bool Upper, bool Odd, bool Last>
QDIFF_INLINE void transform_weight(const int8_t* from, int64_t tap, int16_t* to, int64_t position) {
  Shorts half[kHalfRows][3];
  for (int j = 0; j < 3; ++j) {
    Shorts made[kHalfRows];
    half_weight_transform<Last>(unpacked<Nibbles, Upper, Odd>(from + j * tap), unpacked<Nibbles, Upper, Odd>(from + (3 + j) * tap),
                                unpacked<Nibbles, Upper, Odd>(from + (6 + j) * tap), made);
    for (int64_t i = 0; i < kHalfRows; ++i) half[i][j] = made[i];
  }
  for (int64_t i = 0; i < kHalfRows; ++i) {
    Shorts made[kPatch];
    weight_transform(half[i][0], half[i][1], half[i][2], made);
    for (int64_t j = 0; j < kPatch; ++j) store_raw(to + (i * kPatch + j) * position, made[j]);
  }
}

template <bool Nibbles, bool Upper, bool Last>
QDIFF_INLINE void transform_vector(const int8_t* from, int64_t tap, int16_t* even, int16_t* odd, int64_t position) {
  for (int64_t byte = 0; byte < kVectorBytes; byte += kRegister) {
    transform_weight<Nibbles, Upper, false, Last>(from + byte, tap, even + byte / 2, position);
  }
  for (int64_t byte = 0; byte < kVectorBytes; byte += kRegister) {
    transform_weight<Nibbles, Upper, true, Last>(from + byte, tap, odd + byte / 2, position);
  }
}

// Sums of two neighbouring bytes' magnitudes, of nine taps: they fit into 16 bits.
QDIFF_INLINE Shorts magnitudes_of(const int8_t* from, int64_t tap) {
  Shorts sum{};
  for (int t = 0; t < 9; ++t) {
#if defined(__AVX512BW__)
    const __m512i bytes = _mm512_abs_epi8(_mm512_loadu_si512(from + t * tap));
    sum += Shorts(_mm512_maddubs_epi16(bytes, _mm512_set1_epi8(1)));
#elif defined(__AVX2__)
    const __m256i bytes = _mm256_abs_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + t * tap)));
    sum += Shorts(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)));
#else
    const Shorts both = load_raw<Shorts>(from + t * tap), low = (both << 8) >> 8, high = both >> 8;
    sum += (low ^ (low >> 15)) - (low >> 15) + (high ^ (high >> 15)) - (high >> 15);
#endif
  }
  return sum;
}

// Sums of the magnitudes of weights, of every output channel of a panel; weights are whole bytes.
class Magnitudes {
 public:
  // Those of a quad in 16 output channels, all taps.
  QDIFF_INLINE void add(const int8_t* from, int64_t tap, int64_t vector) {
    for (int64_t part = 0; part < kParts; ++part) {
      const Wides two = Wides(magnitudes_of(from + part * kRegister, tap));
      sums_[vector * kParts + part] += (two & 0xffff) + (two >> 16);
    }
  }

  int64_t largest() const {
    int64_t most = 0;
    for (const Wides& sum : sums_) {
      for (int64_t lane = 0; lane < kRegister / 4; ++lane) most = std::max<int64_t>(most, sum[lane]);
    }
    return most;
  }

 private:
  static constexpr int64_t kParts = kVectorBytes / kRegister;
  Wides sums_[kBlockVectors * kParts] = {};
};

// Whether the sums of a source may be too large for one part, so that magnitudes matter.
QDIFF_INLINE bool may_need_parts(const ConvSource& s) { return s.quads * 4 * 9 * (s.nibbles ? 8 : 128) * 128 >= kReach; }

// A bound of the sums of magnitudes of a block of a panel's weights, of every output channel: `quads` quads from `first`.
int64_t magnitude_of(const PackedPanel& packed, int64_t vectors, int64_t first, int64_t quads) {
  if (packed.nibbles) return quads * 36 * 8;
  Magnitudes magnitudes;
  for (int64_t q = first; q < first + quads; ++q) {
    for (int64_t v = 0; v < vectors; ++v) magnitudes.add(packed.at(v, q), packed.tap, v);
  }
  return magnitudes.largest();
}

// A block of a panel's weights at half of the positions, [position][pair][kPanel][2] of `quads` quads from `first`. Pairs are
// in the order of transform_input.
template <bool Last>
void transform_weights(const PackedPanel& packed, int64_t vectors, int64_t first, int64_t quads, int16_t* to) {
  const int64_t position = weight_position(quads);
  for (int64_t q = 0; q < quads; ++q) {
    const int64_t group = q / kGroupQuads * kGroupQuads, in_group = std::min(kGroupQuads, quads - group);
    for (int64_t v = 0; v < vectors; ++v) {
      int16_t *even = to + (group + q) * kPanel * 2 + v * kLanes * 2, *odd = even + in_group * kPanel * 2;
      const int8_t* from = packed.at(v, first + q);
      if (!packed.nibbles) {
        transform_vector<false, false, Last>(from, packed.tap, even, odd, position);
      } else if (v % 2) {
        transform_vector<true, true, Last>(from, packed.tap, even, odd, position);
      } else {
        transform_vector<true, false, Last>(from, packed.tap, even, odd, position);
      }
    }
  }
}

// Weights that all threads share: [source][panel][half of the positions], and see half_weights.
class SharedWeights {
 public:
  SharedWeights(const Conv& p, void* memory) : p_(p), memory_(static_cast<int16_t*>(memory)) {}

  int16_t* of(int64_t source, int64_t panel, int64_t block, bool last) const {
    int64_t before = 0;
    for (int64_t i = 0; i < source; ++i) before += 2 * half_weights(p_.sources[i]);
    const ConvSource& s = p_.sources[source];
    return memory_ + before * ceil_div(p_.out_channels, kPanel) + (2 * panel + last) * half_weights(s) +
           block * kHalfPositions * weight_position(Blocks(s.quads).size);
  }

  // A task is a block of a panel.
  void make(int64_t task) const {
    const int64_t count = block_count(p_), panel = task / count;
    int64_t block = task % count, source = 0;
    for (; block >= Blocks(p_.sources[source].quads).count; ++source) block -= Blocks(p_.sources[source].quads).count;
    const Blocks blocks(p_.sources[source].quads);
    const PackedPanel packed(p_, source, panel);
    const int64_t vectors = vectors_of_block(p_, panel), first = block * blocks.size, quads = blocks.quads_of(block);
    transform_weights<false>(packed, vectors, first, quads, of(source, panel, block, false));
    transform_weights<true>(packed, vectors, first, quads, of(source, panel, block, true));
  }

 private:
  const Conv& p_;
  int16_t* memory_;
};

}  // namespace
}  // namespace qdiff
