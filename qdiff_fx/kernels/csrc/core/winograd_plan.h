// How a convolution by Winograd's algorithm is cut, and where in memory its pieces lie.
#pragma once

#include "core/winograd_transforms.h"

namespace qdiff {
namespace {

constexpr int64_t kGroupQuads = kRegister / 4;
// What is multiplied together stays in L2: of so many tiles (times panels, where there are several), input channels / 4 and the
// output channels of one packed block the transformed inputs, the transformed weights and the products, at half of the
// positions.
constexpr int64_t kTogether = kRegister >= 32 ? 66 : 48;
constexpr int64_t kKeptInputs = int64_t{16} << 20;  // bytes of transformed inputs that are kept from one group of panels to the next
// Weights that so many chunks of tiles meet are transformed once, into so many bytes at most: writing them and reading them back
// takes about as long as making them ten times, and of more bytes little is won.
constexpr int64_t kSharingChunks = 16, kSharedWeights = int64_t{5} << 20;
constexpr int64_t kBlockQuads = 16;
constexpr int64_t kPanel = kBlockChannels;
constexpr int64_t kWinogradRows = 6;  // tiles multiplied at once
constexpr int64_t kReach = int64_t{1} << 25;

// The input channels of a source in parts of nearly the same size, whole groups each.
struct Blocks {
  int64_t quads, count, size;

  explicit Blocks(int64_t quads) : quads(quads) {
    const int64_t groups = ceil_div(quads, kGroupQuads), most = kBlockQuads / kGroupQuads;
    count = ceil_div(groups, most);
    size = ceil_div(groups, count) * kGroupQuads;
    count = ceil_div(quads, size);
  }

  int64_t quads_of(int64_t block) const { return std::min(size, quads - block * size); }
};

// Distances in memory, in elements. Those between positions are no multiples of a page: caches would hold none of them.
// A row that ends within a group of channels has room for the rest of it.
QDIFF_INLINE int64_t row_stride(int64_t quads) { return quads * 4 + (quads % kGroupQuads ? kRegister / 2 : 0); }
QDIFF_INLINE int64_t input_position(int64_t quads, int64_t tiles) { return tiles * row_stride(quads) + 32; }
// The largest, of blocks of any size.
QDIFF_INLINE int64_t most_input_position(int64_t tiles) { return tiles * (kBlockQuads * 4 + kRegister / 2) + 32; }
QDIFF_INLINE int64_t weight_position(int64_t quads) { return quads * 4 * kPanel + 32; }
QDIFF_INLINE int64_t product_position(int64_t tiles) { return tiles * kPanel + 16; }

// Of all sources.
int64_t block_count(const Conv& p) {
  int64_t count = 0;
  for (int64_t i = 0; i < p.source_count; ++i) count += Blocks(p.sources[i].quads).count;
  return count;
}

// Elements of a panel's transformed weights, [block][position][pair][kPanel][2], at half of the positions.
int64_t half_weights(const ConvSource& s) {
  const Blocks blocks(s.quads);
  return kHalfPositions * ((blocks.count - 1) * weight_position(blocks.size) + weight_position(blocks.quads_of(blocks.count - 1)));
}

// Of all weights of all sources.
int64_t weight_elements(const Conv& p) {
  int64_t count = 0;
  for (int64_t i = 0; i < p.source_count; ++i) count += 2 * half_weights(p.sources[i]);
  return count * ceil_div(p.out_channels, kPanel);
}

// How the work is cut. A task is a chunk of tiles with some panels of output channels, one group after the other: whatever it
// needs it transforms by itself, block by block of the input channels, into memory that stays in L2; all but the weights, where
// many tasks would make the same.
struct WinogradPlan {
  int64_t tile_rows, tile_cols, tiles;  // of 4x4 results, over the whole batch
  int64_t panels;
  int64_t chunk, chunks;                // tiles
  int64_t group;                        // panels
  int64_t share, shares;                // panels of a task
  bool keeps_inputs;                    // from group to group
  bool shares_weights;                  // those of all tasks are made before

  WinogradPlan(const Conv& p, int64_t threads) {
    tile_rows = ceil_div(p.out_h, kOutputs), tile_cols = ceil_div(p.out_w, kOutputs);
    tiles = p.batch * tile_rows * tile_cols;
    panels = ceil_div(p.out_channels, kPanel);
    // Every thread should have a task.
    chunks = std::max(ceil_div(tiles, kTogether), std::min(ceil_div(threads, panels), ceil_div(tiles, kWinogradRows)));
    chunk = ceil_div(ceil_div(tiles, chunks), kWinogradRows) * kWinogradRows;
    chunks = ceil_div(tiles, chunk);
    shares = std::min(panels, ceil_div(threads, chunks));
    share = ceil_div(panels, shares);
    shares = ceil_div(panels, share);
    group = ceil_div(share, ceil_div(share, kTogether / chunk));
    keeps_inputs = share > group && block_count(p) * input_bytes() <= kKeptInputs;
    shares_weights = chunks >= kSharingChunks && 2 * weight_elements(p) <= kSharedWeights;
  }

  // Of one block of input channels, at all positions.
  int64_t input_bytes() const { return kPositions * most_input_position(chunk) * 2; }
  int64_t tasks() const { return chunks * shares; }
  int64_t tiles_of(int64_t at) const { return std::min(chunk, tiles - at * chunk); }
};

// Where a tile is: its image and the first of its results.
struct TilePlace {
  int64_t image, y, x;

  TilePlace(const WinogradPlan& plan, int64_t tile) {
    const Position at(tile, plan.tile_cols, plan.tile_rows);
    image = at.n, y = at.y * kOutputs, x = at.x * kOutputs;
  }
};

}  // namespace
}  // namespace qdiff
