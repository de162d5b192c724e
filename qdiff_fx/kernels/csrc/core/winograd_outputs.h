// Products, transformed back: sums of codes times weights, and all that follows a convolution.
#pragma once

#include "core/winograd_plan.h"

namespace qdiff {
namespace {

// Of one tile and as many channels as a register has: [down][across][kPanel] sums of codes less 128 times weights, and
// `start`.
QDIFF_INLINE void transform_output(const int32_t* m, int64_t position, const Wides& start, int64_t down, int64_t across,
                                   int32_t* to) {
  Wides half[kOutputs][kPatch];
  for (int64_t j = 0; j < kPatch; ++j) {
    Unsigneds in[kPatch], made[kOutputs];
    for (int64_t i = 0; i < kPatch; ++i) in[i] = load_raw<Unsigneds>(m + (i * kPatch + j) * position);
    output_transform(in, made);
    for (int64_t i = 0; i < kOutputs; ++i) half[i][j] = Wides(made[i]);
  }
  constexpr uint32_t kInverseOfNine = 954437177;
  for (int64_t i = 0; i < down; ++i) {
    Unsigneds in[kPatch], made[kOutputs];
    for (int64_t j = 0; j < kPatch; ++j) in[j] = Unsigneds(half[i][j]);
    output_transform(in, made);
    for (int64_t j = 0; j < across; ++j) {
      store_raw(to + (i * across + j) * kPanel, (Wides(made[j] * kInverseOfNine) >> 6) + start);
    }
  }
}

// What one thread needs beside what it shares.
struct WinogradMemory {
  int16_t* own;        // weights, or inputs of two chunks
  int32_t* products;
  int32_t* sums;       // [tile][4x4][kPanel], of the parts before
  float* float_sums;   // the same, of the sources before

  WinogradMemory(const Conv& p, const WinogradPlan& plan, void* from) {
    own = static_cast<int16_t*>(from);
    products = reinterpret_cast<int32_t*>(own + plan.own(p));
    sums = products + kPositions * product_position(plan.chunk);
    float_sums = reinterpret_cast<float*>(sums + plan.chunk * kTileSums);
  }
};

// Which part of a source's sums is being finished.
struct Part {
  bool first, last;            // of its parts
  bool first_source, last_source;
};

// Calls with where each vector of the sums of some pixels is.
template <typename Use>
QDIFF_INLINE void each_sum(const Place& at, const Use& use) {
  for (int64_t r = 0; r < at.rows; ++r) {
    for (int64_t v = 0; v < at.channels; v += kLanes) use(r * kPanel + v);
  }
}

void finish_rows(const Conv& p, const ConvSource& s, const Part& part, const Place& at, int32_t* sums, float* float_sums,
                 Tile& tile) {
  if (!part.first) {
    each_sum(at, [&](int64_t i) { store_raw(tile.acc + i, load_raw<Words>(tile.acc + i) + load_raw<Words>(sums + i)); });
  }
  if (!part.last) return each_sum(at, [&](int64_t i) { store_raw(sums + i, load_raw<Ints>(tile.acc + i)); });
  if (!part.first_source) each_sum(at, [&](int64_t i) { store(tile.sum + i, load(float_sums + i)); });
  if (!part.last_source) {
    add_to(tile.sum, part.first_source, tile, s, at);
    return each_sum(at, [&](int64_t i) { store(float_sums + i, load(tile.sum + i)); });
  }
  finish_tile(p, s, !part.first_source, tile, at);
}

void finish_chunk(const Conv& p, const ConvSource& s, const WinogradPlan& plan, int64_t chunk, int64_t panel, const Part& part,
                  const WinogradMemory& memory, Tile& tile) {
  const int64_t channel = panel * kPanel, channels = std::min(kPanel, p.out_channels - channel);
  const int64_t whole = vectors_of_block(p, panel) * kLanes;
  const int32_t centre = 128 - s.zero_point;
  for (int64_t i = 0; i < plan.tiles_of(chunk); ++i) {
    const int64_t at = chunk * plan.chunk + i;
    const int64_t x = at % plan.tile_cols * kOutputs, y = at / plan.tile_cols % plan.tile_rows * kOutputs;
    const int64_t image = at / (plan.tile_cols * plan.tile_rows);
    const int64_t across = std::min(kOutputs, p.out_w - x), down = std::min(kOutputs, p.out_h - y);
    const Place place{(image * p.out_h + y) * p.out_w + x, down * across, across, p.out_w, panel, channel, channels};
    fetch_ahead(p, place);
    for (int64_t c = 0; c < whole; c += kRegister / 4) {
      const Wides from = part.first ? load_raw<Wides>(s.sums + channel + c) * centre : Wides{};
      const int32_t* products = memory.products + i * kPanel + c;
      if (down == kOutputs && across == kOutputs) {
        transform_output(products, product_position(plan.chunk), from, kOutputs, kOutputs, tile.acc + c);
      } else {
        transform_output(products, product_position(plan.chunk), from, down, across, tile.acc + c);
      }
    }
    finish_rows(p, s, part, place, memory.sums + i * kTileSums, memory.float_sums + i * kTileSums, tile);
  }
}

}  // namespace
}  // namespace qdiff
