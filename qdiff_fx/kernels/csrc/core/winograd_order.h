// In which order a thread takes what is to be multiplied.
#pragma once

#include <new>

#include "core/winograd_products.h"

namespace qdiff {
namespace {

// A chunk of tiles with some panels.
class WinogradTask {
 public:
  WinogradTask(const Conv& p, const WinogradPlan& plan, const SharedWeights& shared, const WinogradMemory& memory, int64_t task)
      : p_(p), plan_(plan), shared_(shared), memory_(memory), chunk_(task % plan.chunks), begin_(task / plan.chunks * plan.share) {}

  void run() {
    const int64_t end = std::min(plan_.panels, begin_ + plan_.share);
    for (first_ = begin_; first_ < end; first_ += panels_) {
      panels_ = std::min(plan_.group, end - first_);
      block_ = 0;
      for (int64_t source = 0; source < p_.source_count; ++source) one_source(source);
    }
  }

 private:
  void one_source(int64_t source) {
    const ConvSource& s = p_.sources[source];
    for (int64_t i = 0; makes_inputs() && i < plan_.tiles_of(chunk_); ++i) {
      new (memory_.patches + i) Patch(p_, s, plan_, chunk_ * plan_.chunk + i);
    }
    const int64_t blocks = Blocks(s.quads).count;
    for (int64_t begin = 0, end = 0; begin < blocks; begin = end) {
      end = part_end(source, begin);
      multiply<false>(source, begin, end);
      for (int64_t i = 0; i < panels_; ++i) finish_first_half(p_, plan_, chunk_, first_ + i, i, memory_);
      multiply<true>(source, begin, end);
      const Part part{begin == 0, end == blocks, source == 0, source + 1 == p_.source_count};
      for (int64_t i = 0; i < panels_; ++i) finish_chunk(p_, s, plan_, chunk_, first_ + i, i, part, memory_, tile_);
    }
    block_ += blocks;
  }

  bool makes_inputs() const { return !plan_.keeps_inputs || first_ == begin_; }

  // Behind the last of the blocks from `begin` whose sums cannot become too large.
  int64_t part_end(int64_t source, int64_t begin) const {
    const ConvSource& s = p_.sources[source];
    const Blocks blocks(s.quads);
    if (!may_need_parts(s)) return blocks.count;
    int64_t end = begin, sum = 0;
    while (end < blocks.count) {
      int64_t more = 0;
      for (int64_t i = first_; i < first_ + panels_; ++i) {
        more = std::max(more, magnitude_of({p_, source, i}, vectors_of_block(p_, i), end * blocks.size, blocks.quads_of(end)));
      }
      if (end > begin && (sum + more) * 128 >= kReach) break;
      sum += more, ++end;
    }
    return end;
  }

  template <bool Last>
  void multiply(int64_t source, int64_t begin, int64_t end) {
    const Blocks blocks(p_.sources[source].quads);
    const int64_t tiles = plan_.tiles_of(chunk_);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * blocks.size, quads = blocks.quads_of(block);
      int16_t* inputs = memory_.inputs + (plan_.keeps_inputs ? 2 * (block_ + block) + Last : 0) * memory_.half_input;
      if (makes_inputs()) transform_inputs<Last>(memory_.patches, tiles, first, quads, inputs, input_position(quads, plan_.chunk));
      for (int64_t i = 0; i < panels_; ++i) {
        const int64_t vectors = vectors_of_block(p_, first_ + i);
        const bool shared = plan_.shares_weights;
        int16_t* weights = shared ? shared_.of(source, first_ + i, block, Last) : memory_.weights;
        if (!shared) transform_weights<Last>({p_, source, first_ + i}, vectors, first, quads, weights);
        multiply_block(inputs, plan_.chunk, tiles, weights, shared, quads, vectors, memory_.products + i * memory_.panel, block > begin);
      }
    }
  }

  const Conv& p_;
  const WinogradPlan& plan_;
  const SharedWeights& shared_;
  const WinogradMemory& memory_;
  const int64_t chunk_, begin_;
  int64_t first_ = 0, panels_ = 0;  // of the group
  int64_t block_ = 0;               // how many there are of the sources before
  Tile tile_;
};

}  // namespace
}  // namespace qdiff
