// How a convolution by Winograd's algorithm is cut, and where in memory its pieces lie.
#pragma once

#include "core/winograd_transforms.h"

namespace qdiff {
namespace {

constexpr int64_t kGroupQuads = kRegister / 4;
// What is multiplied together stays in L2: of so many tiles, input channels / 4 and the output channels of one packed block
// the transformed inputs, the transformed weights and the products.
constexpr int64_t kChunkTiles = kRegister == 64 ? 48 : 24;
constexpr int64_t kBlockQuads = 16;
constexpr int64_t kPanel = kBlockChannels;
constexpr int64_t kWinogradRows = 6;  // tiles multiplied at once
constexpr int64_t kKeptWeights = int64_t{3} << 19;    // bytes of transformed weights that stay in L2 from chunk to chunk
constexpr int64_t kSharedInputs = int64_t{16} << 20;  // bytes of transformed inputs that there are at a time
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

// Of all sources.
int64_t block_count(const Conv& p) {
  int64_t count = 0;
  for (int64_t i = 0; i < p.source_count; ++i) count += Blocks(p.sources[i].quads).count;
  return count;
}

// Distances in memory, in elements. Those between positions are no multiples of a page: caches would hold none of them.
// A row that ends within a group of channels has room for the rest of it.
QDIFF_INLINE int64_t row_stride(int64_t quads) { return quads * 4 + (quads % kGroupQuads ? kRegister / 2 : 0); }
QDIFF_INLINE int64_t input_position(int64_t quads, int64_t tiles) { return tiles * row_stride(quads) + 32; }
QDIFF_INLINE int64_t weight_position(int64_t quads) { return quads * 4 * kPanel + 32; }
QDIFF_INLINE int64_t product_position(int64_t tiles) { return tiles * kPanel + 16; }

QDIFF_INLINE int64_t input_block_size(int64_t quads, int64_t tiles) {
  return kPositions * input_position(quads, tiles);
}

int64_t input_chunk_size(const Conv& p, int64_t tiles) {
  int64_t size = 0;
  for (int64_t i = 0; i < p.source_count; ++i) {
    const Blocks blocks(p.sources[i].quads);
    for (int64_t b = 0; b < blocks.count; ++b) size += input_block_size(blocks.quads_of(b), tiles);
  }
  return size;
}

// Of all parts, and of the largest.
struct WeightSizes {
  int64_t all = 0, largest = 0;

  explicit WeightSizes(const Conv& p) {
    for (int64_t i = 0; i < p.source_count; ++i) {
      const Blocks blocks(p.sources[i].quads);
      for (int64_t b = 0; b < blocks.count; ++b) {
        const int64_t size = kPositions * weight_position(blocks.quads_of(b));
        all += size;
        largest = std::max(largest, size);
      }
    }
  }
};

// How the work is cut. Where all transformed weights stay in L2, they are made first and shared, and a task is one chunk of
// tiles, whose inputs nobody else needs (`by_chunks`). Elsewhere the work is cut into runs of chunks; of a run first all inputs
// are transformed, then a task is one panel of output channels over one of `splits` parts of its chunks.
struct WinogradPlan {
  int64_t tile_rows, tile_cols, tiles;  // of 4x4 results, over the whole batch
  int64_t panels;
  WeightSizes sizes;                    // elements of the transformed weights of a panel
  bool by_chunks;
  int64_t chunk, chunks;                // tiles multiplied while their inputs stay in cache
  int64_t run, runs;                    // chunks
  int64_t splits;
  bool keeps_weights;                   // from chunk to chunk

  WinogradPlan(const Conv& p, int64_t threads) : sizes(p) {
    tile_rows = ceil_div(p.out_h, kOutputs), tile_cols = ceil_div(p.out_w, kOutputs);
    tiles = p.batch * tile_rows * tile_cols;
    panels = ceil_div(p.out_channels, kPanel);
    by_chunks = panels * sizes.all * 2 <= kKeptWeights / 2 && ceil_div(tiles, kChunkTiles) >= 2 * threads;
    // Every thread should have a task.
    chunks = std::max(ceil_div(tiles, kChunkTiles), std::min(ceil_div(threads, panels), ceil_div(tiles, kWinogradRows)));
    chunk = ceil_div(ceil_div(tiles, chunks), kWinogradRows) * kWinogradRows;
    chunks = ceil_div(tiles, chunk);
    const int64_t most = std::max<int64_t>(1, kSharedInputs / (input_chunk_size(p, chunk) * 2));
    runs = by_chunks ? 1 : ceil_div(chunks, most);
    run = ceil_div(chunks, runs);
    runs = ceil_div(chunks, run);
    splits = 1;
    while (panels * splits % threads != 0 && panels * splits < 8 * threads && 2 * splits <= run) splits *= 2;
    keeps_weights = run > splits && sizes.all * 2 <= kKeptWeights;
  }

  int64_t tasks() const { return by_chunks ? chunks : panels * splits; }
  int64_t tiles_of(int64_t at) const { return std::min(chunk, tiles - at * chunk); }
  int64_t first_chunk(int64_t of_run) const { return of_run * run; }
  int64_t last_chunk(int64_t of_run) const { return std::min(chunks, (of_run + 1) * run); }
  int64_t first_tile(int64_t of_run) const { return first_chunk(of_run) * chunk; }
  int64_t last_tile(int64_t of_run) const { return std::min(tiles, last_chunk(of_run) * chunk); }
  // Elements of what the threads share, and of what is made by and for one of them.
  int64_t shared(const Conv& p) const { return by_chunks ? panels * sizes.all : run * input_chunk_size(p, chunk); }
  int64_t own(const Conv& p) const {
    return by_chunks ? 2 * input_chunk_size(p, chunk) : keeps_weights ? sizes.all : 2 * sizes.largest;
  }
};

constexpr int64_t kTileSums = kOutputs * kOutputs * kPanel;

// Bytes of scratch memory, those of every thread, and those which all share.
int64_t winograd_thread_bytes(const Conv& p, int64_t threads) {
  const WinogradPlan plan(p, threads);
  return ceil_div(plan.own(p) * 2 + kPositions * product_position(plan.chunk) * 4 + 2 * plan.chunk * kTileSums * 4, 64) * 64;
}

int64_t winograd_shared_bytes(const Conv& p, int64_t threads) {
  return ceil_div(WinogradPlan(p, threads).shared(p) * 2, 64) * 64;
}

int64_t winograd_runs(const Conv& p, int64_t threads) { return WinogradPlan(p, threads).runs; }

}  // namespace
}  // namespace qdiff
