// Products, transformed back: sums of codes times weights, and all that follows a convolution.
#pragma once

#include "core/winograd_inputs.h"

namespace qdiff {
namespace {

// Three rows of products of one tile and as many channels as a register has, transformed along each: [row][kOutputs].
QDIFF_INLINE void transform_rows(const int32_t* m, int64_t position, Unsigneds (&to)[kHalfRows][kOutputs]) {
  for (int64_t i = 0; i < kHalfRows; ++i) {
    Unsigneds in[kPatch];
    for (int64_t j = 0; j < kPatch; ++j) in[j] = load_raw<Unsigneds>(m + (i * kPatch + j) * position);
    output_transform(in, to[i]);
  }
}

// What the first half of the positions leaves for the second: [row][kOutputs][kPanel].
QDIFF_INLINE void transform_first_rows(const int32_t* m, int64_t position, int32_t* to) {
  Unsigneds made[kHalfRows][kOutputs];
  transform_rows(m, position, made);
  for (int64_t i = 0; i < kHalfRows; ++i) {
    for (int64_t j = 0; j < kOutputs; ++j) store_raw(to + (i * kOutputs + j) * kPanel, made[i][j]);
  }
}

// From the products of the second half and what the first has left: [down][across][kPanel] sums of codes less 128 times
// weights, and `start`.
QDIFF_INLINE void transform_output(const int32_t* m, int64_t position, const int32_t* first_rows, const Wides& start, int64_t down,
                                   int64_t across, int32_t* to) {
  Unsigneds last[kHalfRows][kOutputs];
  transform_rows(m, position, last);
  constexpr uint32_t kInverseOfNine = 954437177;
  for (int64_t j = 0; j < across; ++j) {
    Unsigneds in[kPatch], made[kOutputs];
    for (int64_t i = 0; i < kHalfRows; ++i) {
      in[i] = load_raw<Unsigneds>(first_rows + (i * kOutputs + j) * kPanel);
      in[kHalfRows + i] = last[i][j];
    }
    output_transform(in, made);
    for (int64_t i = 0; i < down; ++i) {
      store_raw(to + (i * across + j) * kPanel, (Wides(made[i] * kInverseOfNine) >> 6) + start);
    }
  }
}

constexpr int64_t kTileSums = kOutputs * kOutputs * kPanel, kTileRowSums = kHalfRows * kOutputs * kPanel;

// What one thread needs: of half of the positions, a block of the inputs of a chunk (or all blocks of all, where they are kept)
// and one of a panel's weights; of each panel of a group the products, what their first half leaves, sums of the parts before and those of the sources before.
struct WinogradMemory {
  int64_t panel;       // elements of the products of a panel
  int64_t half_input;  // of the inputs of a block at half of the positions
  int16_t *inputs, *weights;
  int32_t *products, *first_rows, *sums;
  float* float_sums;
  Patch* patches;
  int64_t bytes;

  WinogradMemory(const Conv& p, const WinogradPlan& plan, void* from) {
    const int64_t chunk = plan.chunk;
    panel = kHalfPositions * product_position(chunk);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(from);
    uintptr_t at = begin;
    half_input = kHalfPositions * most_input_position(chunk);
    inputs = take<int16_t>(at, (plan.keeps_inputs ? 2 * block_count(p) : 1) * half_input);
    weights = take<int16_t>(at, kHalfPositions * weight_position(kBlockQuads));
    products = take<int32_t>(at, plan.group * panel);
    first_rows = take<int32_t>(at, plan.group * chunk * kTileRowSums);
    patches = take<Patch>(at, chunk);
    sums = take<int32_t>(at, plan.group * chunk * kTileSums);
    float_sums = take<float>(at, plan.group * chunk * kTileSums);
    bytes = int64_t(at - begin);
  }

 private:
  template <typename T>
  static T* take(uintptr_t& at, int64_t count) {
    T* const taken = reinterpret_cast<T*>(at);
    at += uintptr_t(ceil_div(count * int64_t(sizeof(T)), 64) * 64);
    return taken;
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

// `panel` of the layer, the `of_group`-th of its group.
void finish_first_half(const Conv& p, const WinogradPlan& plan, int64_t chunk, int64_t panel, int64_t of_group,
                       const WinogradMemory& memory) {
  const int32_t* products = memory.products + of_group * memory.panel;
  int32_t* rows = memory.first_rows + of_group * plan.chunk * kTileRowSums;
  const int64_t whole = vectors_of_block(p, panel) * kLanes;
  for (int64_t i = 0; i < plan.tiles_of(chunk); ++i) {
    for (int64_t c = 0; c < whole; c += kRegister / 4) {
      transform_first_rows(products + i * kPanel + c, product_position(plan.chunk), rows + i * kTileRowSums + c);
    }
  }
}

void finish_chunk(const Conv& p, const ConvSource& s, const WinogradPlan& plan, int64_t chunk, int64_t panel, int64_t of_group,
                  const Part& part, const WinogradMemory& memory, Tile& tile) {
  const int64_t channel = panel * kPanel, channels = std::min(kPanel, p.out_channels - channel);
  const int64_t whole = vectors_of_block(p, panel) * kLanes, position = product_position(plan.chunk);
  const int32_t centre = 128 - s.zero_point;
  for (int64_t i = 0; i < plan.tiles_of(chunk); ++i) {
    const int64_t of_task = of_group * plan.chunk + i;
    const TilePlace at(plan, chunk * plan.chunk + i);
    const int64_t across = std::min(kOutputs, p.out_w - at.x), down = std::min(kOutputs, p.out_h - at.y);
    const Place place{(at.image * p.out_h + at.y) * p.out_w + at.x, down * across, across, p.out_w, panel, channel, channels};
    fetch_ahead(p, place);
    for (int64_t c = 0; c < whole; c += kRegister / 4) {
      const Wides from = part.first ? load_raw<Wides>(s.sums + channel + c) * centre : Wides{};
      const int32_t* products = memory.products + of_group * memory.panel + i * kPanel + c;
      const int32_t* first_rows = memory.first_rows + of_task * kTileRowSums + c;
      if (down == kOutputs && across == kOutputs) {
        transform_output(products, position, first_rows, from, kOutputs, kOutputs, tile.acc + c);
      } else {
        transform_output(products, position, first_rows, from, down, across, tile.acc + c);
      }
    }
    finish_rows(p, s, part, place, memory.sums + of_task * kTileSums, memory.float_sums + of_task * kTileSums, tile);
  }
}

}  // namespace
}  // namespace qdiff
