// Codes of an image, transformed: B' d B of every tile, position by position.
#pragma once

#include "core/winograd_plan.h"

namespace qdiff {
namespace {

// Where the 6x6 pixels that a tile reads are.
struct Patch {
  const uint8_t* pixels[kPatch][kPatch];

  Patch() = default;
  Patch(const Conv& p, const ConvSource& s, const WinogradPlan& plan, int64_t tile) {
    const int64_t x = tile % plan.tile_cols * kOutputs, y = tile / plan.tile_cols % plan.tile_rows * kOutputs;
    const uint8_t* image = s.codes + tile / (plan.tile_cols * plan.tile_rows) * s.stride_n;
    for (int64_t i = 0; i < kPatch; ++i) {
      // What lies beyond the last row or column is read for results that nobody keeps.
      const int64_t row = y + i < p.out_h + 2 ? s.row_map[y + i] : -1;
      for (int64_t j = 0; j < kPatch; ++j) {
        const int64_t col = x + j < p.out_w + 2 ? s.col_map[x + j] : -1;
        pixels[i][j] = (row | col) < 0 ? s.outside : image + row * s.stride_h + col * s.stride_w;
      }
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
  constexpr int64_t kHalf = kPatch / 2;
  Shorts half[kHalf][kPatch];
  for (int64_t j = 0; j < kPatch; ++j) {
    const Shorts column[kPatch] = {read(0, j), read(1, j), read(2, j), read(3, j), read(4, j), read(5, j)};
    Shorts made[kHalf];
    half_input_transform<Last>(column, made);
    for (int64_t i = 0; i < kHalf; ++i) half[i][j] = made[i];
  }
  for (int64_t i = 0; i < kHalf; ++i) {
    Shorts made[kPatch];
    input_transform(half[i], made);
    if (!Last && i == 1) made[1] -= kCentre;
    for (int64_t j = 0; j < kPatch; ++j) store_raw(to + (i * kPatch + j) * position, made[j]);
  }
}

template <typename Read>
QDIFF_INLINE void transform_patch(const Read& read, int16_t* to, int64_t position) {
  transform_half_patch<false>(read, to, position);
  transform_half_patch<true>(read, to + kPositions / 2 * position, position);
}

// One tile, `quads` groups of four channels from `first`, into its row at every position.
void transform_input(const Patch& patch, int64_t first, int64_t quads, int16_t* to, int64_t position) {
  for (int64_t q = 0; q < quads; q += kGroupQuads, to += kRegister) {
    const int64_t count = std::min(kGroupQuads, quads - q), byte = (first + q) * 4;
    // Lines that are about to be written are asked for at once: they are too far apart for the processor to see them coming.
    for (int64_t at = 0; at < kPositions; ++at) {
      for (int64_t half = 0; half < kRegister; half += 32) __builtin_prefetch(to + at * position + half, 1);
    }
    if (count == kGroupQuads) {
      for (int odd = 0; odd < 2; ++odd) {
        const auto read = [&](int64_t i, int64_t j) { return codes_of(patch.pixels[i][j] + byte, odd); };
        transform_patch(read, to + odd * kRegister / 2, position);
      }
      continue;
    }
    alignas(64) uint8_t rest[kPatch][kPatch][kRegister] = {};
    for (int64_t i = 0; i < kPatch; ++i) {
      for (int64_t j = 0; j < kPatch; ++j) std::memcpy(rest[i][j], patch.pixels[i][j] + byte, size_t(count * 4));
    }
    for (int odd = 0; odd < 2; ++odd) {  // the second over what the first has written too much
      const auto read = [&](int64_t i, int64_t j) { return codes_of(rest[i][j], odd); };
      transform_patch(read, to + odd * count * 2, position);
    }
  }
}

// The inputs of a chunk, [source][block][position][tile][channel], which are made piece by piece: a piece is a block of a tile.
class ChunkInputs {
 public:
  ChunkInputs(const Conv& p, const WinogradPlan& plan, int64_t chunk, int16_t* to)
      : p_(p), plan_(plan), chunk_(chunk), blocks_(block_count(p)), to_(to) {}

  int64_t pieces() const { return plan_.tiles_of(chunk_) * blocks_; }

  void piece(int64_t number) {
    const int64_t tile = number / blocks_;
    if (number % blocks_ == 0) source_ = 0, block_ = 0, block_to_ = to_;
    const ConvSource& s = p_.sources[source_];
    if (block_ == 0) patch_ = Patch(p_, s, plan_, chunk_ * plan_.chunk + tile);
    const Blocks blocks(s.quads);
    const int64_t quads = blocks.quads_of(block_);
    transform_input(patch_, block_ * blocks.size, quads, block_to_ + tile * row_stride(quads), input_position(quads, plan_.chunk));
    block_to_ += input_block_size(quads, plan_.chunk);
    if (++block_ == blocks.count) block_ = 0, ++source_;
  }

  void tile(int64_t number) {
    for (int64_t b = 0; b < blocks_; ++b) piece(number * blocks_ + b);
  }

 private:
  const Conv& p_;
  const WinogradPlan& plan_;
  int64_t chunk_, blocks_;
  int16_t* to_;
  // Of the next piece.
  int64_t source_ = 0, block_ = 0;
  int16_t* block_to_ = nullptr;
  Patch patch_;
};

}  // namespace
}  // namespace qdiff
