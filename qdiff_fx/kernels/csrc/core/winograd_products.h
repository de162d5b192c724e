// Transformed inputs times transformed weights. An instruction set defines `multiply_pairs`.
#pragma once

#include <array>
#include <map>
#include <optional>

#include "core/winograd_outputs.h"
#include "core/winograd_weights.h"

namespace qdiff {
namespace {

// m[row][kPanel] (+)= sum over pairs of a[row][pair] * b[pair][kPanel], both of two int16; `rows` is at most kWinogradRows, and
// of the panel `vectors` of 16 channels are computed. A line of memory from `ahead` on is fetched for each pair: what is read
// next lies too scattered for the processor to guess.
void multiply_pairs(const int16_t* a, int64_t a_stride, int64_t rows, const int16_t* b, int64_t pairs, int64_t vectors, int32_t* m,
                    bool add, const char* ahead);

// What will be needed next is made between products, piece by piece: it takes its time by writing to memory, and products by
// computing, and so each goes on during the other.
template <typename Work>
class Aside {
 public:
  Aside() = default;
  // To be done in the course of so many products.
  Aside(const Work& work, int64_t products) : work_(work), pieces_(work.pieces()), products_(products) {}

  void after_product() {
    ++done_products_;
    while (done_ * products_ < pieces_ * done_products_ && done_ < pieces_) work_->piece(done_++);
  }

  // The rest of it; there has to be some.
  const Work& finish() {
    while (done_ < pieces_) work_->piece(done_++);
    return *work_;
  }

 private:
  std::optional<Work> work_;
  int64_t pieces_ = 0, products_ = 1, done_ = 0, done_products_ = 0;
};

// A block of input channels times those of a panel of output channels, for a chunk of tiles.
struct Step {
  int64_t panel, chunk, source, block;
  const int16_t* input;
  int16_t* weights;
  bool makes_weights;  // they are not there yet
};

int64_t row_steps(const WinogradPlan& plan, int64_t chunk) { return ceil_div(plan.tiles_of(chunk), kWinogradRows); }

template <typename Work>
void multiply_block(const Conv& p, const WinogradPlan& plan, const Step& step, bool add, int32_t* products, Aside<Work>& aside) {
  const Blocks blocks(p.sources[step.source].quads);
  const int64_t quads = blocks.quads_of(step.block), vectors = vectors_of_block(p, step.panel);
  const int64_t tiles = plan.tiles_of(step.chunk), steps = row_steps(plan, step.chunk);
  const int16_t *input = step.input, *weights = step.weights;
  for (int64_t at = 0; at < kPositions; ++at) {
    const char* ahead = reinterpret_cast<const char*>(input + input_position(quads, plan.chunk));
    int64_t row = 0;
    for (int64_t left = steps; left > 0; --left) {
      const int64_t rows = ceil_div(tiles - row, left);
      multiply_pairs(input + row * row_stride(quads), row_stride(quads), rows, weights, 2 * quads, vectors, products + row * kPanel,
                     add, ahead + row * row_stride(quads) * 2);
      aside.after_product();
      row += rows;
    }
    input += input_position(quads, plan.chunk);
    weights += weight_position(quads);
    products += product_position(plan.chunk);
  }
}

BlockWeights weights_of(const Conv& p, const Step& step) {
  const Blocks blocks(p.sources[step.source].quads);
  return {p, step.source, step.panel, step.block * blocks.size, blocks.quads_of(step.block), step.weights};
}

// Multiplies step by step, and finishes the sums of a source as soon as they are whole, or might become too large.
class Summation {
 public:
  Summation(const Conv& p, const WinogradPlan& plan, const WinogradMemory& memory) : p_(p), plan_(plan), memory_(memory) {}

  // What the magnitudes of its weights are, where that was found while they were made.
  void know(const Step& step, const BlockWeights& weights) { known_[{step.panel, step.source, step.block}] = weights.magnitude(); }

  template <typename Work>
  void add(const Step& step, Aside<Work>& aside) {
    const ConvSource& s = p_.sources[step.source];
    const Blocks blocks(s.quads);
    if (step.block == 0) first_part_ = true, open_ = false, sum_ = 0;
    if (may_need_parts(s)) {
      const int64_t more = magnitude(step);
      if (open_ && (sum_ + more) * 128 >= kReach) {
        finish(step, false);
        first_part_ = false, open_ = false, sum_ = 0;
      }
      sum_ += more;
    }
    multiply_block(p_, plan_, step, open_, memory_.products, aside);
    open_ = true;
    if (step.block + 1 == blocks.count) finish(step, true);
  }

 private:
  int64_t magnitude(const Step& step) {
    const auto [found, is_new] = known_.try_emplace({step.panel, step.source, step.block}, 0);
    if (is_new) {
      BlockWeights weights = weights_of(p_, step);
      weights.measure();
      found->second = weights.magnitude();
    }
    return found->second;
  }

  void finish(const Step& step, bool last) {
    const Part part{first_part_, last, step.source == 0, step.source + 1 == p_.source_count};
    finish_chunk(p_, p_.sources[step.source], plan_, step.chunk, step.panel, part, memory_, tile_);
  }

  const Conv& p_;
  const WinogradPlan& plan_;
  const WinogradMemory& memory_;
  std::map<std::array<int64_t, 3>, int64_t> known_;
  bool first_part_ = true, open_ = false;  // whether products have been summed that are not finished
  int64_t sum_ = 0;
  Tile tile_;
};

}  // namespace
}  // namespace qdiff
