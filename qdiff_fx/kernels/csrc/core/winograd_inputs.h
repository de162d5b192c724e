// Codes of an image, transformed: B' d B of every tile, position by position.
#pragma once

#include "core/winograd_plan.h"

namespace qdiff {
namespace {

// Where the 6x6 pixels that a tile reads are.
struct Patch {
  const uint8_t* pixels[kPatch][kPatch];

  Patch(const Conv& p, const ConvSource& s, const WinogradPlan& plan, int64_t tile) {
    const TilePlace at(plan, tile);
    const uint8_t* image = s.codes + at.image * s.stride_n;
    int64_t cols[kPatch];
    // What lies beyond the last row or column is read for results that nobody keeps.
    for (int64_t j = 0; j < kPatch; ++j) cols[j] = at.x + j < p.out_w + 2 ? s.col_map[at.x + j] : -1;
    for (int64_t i = 0; i < kPatch; ++i) {
      const int64_t row = at.y + i < p.out_h + 2 ? s.row_map[at.y + i] : -1;
      const uint8_t* line = image + row * s.stride_h;
      for (int64_t j = 0; j < kPatch; ++j) pixels[i][j] = (row | cols[j]) < 0 ? s.outside : line + cols[j] * s.stride_w;
    }
  }
};

// Codes of every second channel: those at even places of each group of four, or (`odd`) at odd ones. So neither codes nor
// weights, which are cut up alike, have to be moved from one lane to another.
QDIFF_INLINE Shorts codes_of(const uint8_t* from, bool odd) {
  const Halfwords both = load_raw<Halfwords>(from);
  return Shorts(odd ? both >> 8 : both & uint16_t(0xff));
}

template <bool Last, typename Read>
QDIFF_INLINE void transform_half_patch(const Read& read, int16_t* to, int64_t position) {
  // Of codes less 128 each: B' of a constant is -6 times it in the second place, and nothing elsewhere.
  constexpr int16_t kCentre = 128 * 36;
  Shorts half[kHalfRows][kPatch];
  for (int64_t j = 0; j < kPatch; ++j) {
    const Shorts column[kPatch] = {read(0, j), read(1, j), read(2, j), read(3, j), read(4, j), read(5, j)};
    Shorts made[kHalfRows];
    half_input_transform<Last>(column, made);
    for (int64_t i = 0; i < kHalfRows; ++i) half[i][j] = made[i];
  }
  for (int64_t i = 0; i < kHalfRows; ++i) {
    Shorts made[kPatch];
    input_transform(half[i], made);
    if (!Last && i == 1) made[1] -= kCentre;
    for (int64_t j = 0; j < kPatch; ++j) store_raw(to + (i * kPatch + j) * position, made[j]);
  }
}

// Half of the positions of one tile, `quads` groups of four channels from `first`, into its row at every position.
template <bool Last>
QDIFF_INLINE void transform_input(const Patch& patch, int64_t first, int64_t quads, int16_t* to, int64_t position) {
  for (int64_t q = 0; q < quads; q += kGroupQuads, to += kRegister) {
    const int64_t count = std::min(kGroupQuads, quads - q), byte = (first + q) * 4;
    if (count == kGroupQuads) {
      for (int odd = 0; odd < 2; ++odd) {
        const auto read = [&](int64_t i, int64_t j) { return codes_of(patch.pixels[i][j] + byte, odd); };
        transform_half_patch<Last>(read, to + odd * kRegister / 2, position);
      }
      continue;
    }
    alignas(64) uint8_t rest[kPatch][kPatch][kRegister] = {};
    for (int64_t i = 0; i < kPatch; ++i) {
      for (int64_t j = 0; j < kPatch; ++j) std::memcpy(rest[i][j], patch.pixels[i][j] + byte, size_t(count * 4));
    }
    for (int odd = 0; odd < 2; ++odd) {  // the second over what the first has written too much
      const auto read = [&](int64_t i, int64_t j) { return codes_of(rest[i][j], odd); };
      transform_half_patch<Last>(read, to + odd * count * 2, position);
    }
  }
}

// Of all tiles of a chunk: [position][tile][channel].
template <bool Last>
void transform_inputs(const Patch* patches, int64_t tiles, int64_t first, int64_t quads, int16_t* to, int64_t position) {
  for (int64_t tile = 0; tile < tiles; ++tile) {
    transform_input<Last>(patches[tile], first, quads, to + tile * row_stride(quads), position);
  }
}

}  // namespace
}  // namespace qdiff
