// In which order a thread takes what is to be multiplied: one panel of output channels or one chunk of tiles after the other.
#pragma once

#include <optional>

#include "core/winograd_inputs.h"
#include "core/winograd_products.h"

namespace qdiff {
namespace {

// ------------------------------------------------------------------------------------------- panel after panel

// The steps of a thread's tasks, where a task is a panel.
class PanelSteps {
 public:
  PanelSteps(const Conv& p, const WinogradPlan& plan, int64_t run, const int16_t* inputs, int16_t* weights, Tasks& tasks)
      : p_(p), plan_(plan), run_(run), inputs_(inputs), weights_(weights), chunk_size_(input_chunk_size(p, plan.chunk)), tasks_(tasks) {}

  bool next(Step& step) {
    if (chunk_ == last_chunk_ && !next_task()) return false;
    const int64_t source = source_, block = block_;
    const Blocks blocks(p_.sources[source].quads);
    const int64_t quads = blocks.quads_of(block), size = kPositions * weight_position(quads);
    const bool again = plan_.keeps_weights && chunk_ != first_chunk_;
    step = {panel_, chunk_, source, block, input_, plan_.keeps_weights ? kept_ : weights_ + made_ % 2 * plan_.sizes.largest, !again};
    made_ += !again;
    input_ += input_block_size(quads, plan_.chunk), kept_ += size;
    if (++block_ == blocks.count) block_ = 0, ++source_;
    if (source_ == p_.source_count) source_ = 0, begin_chunk(chunk_ + 1);
    return true;
  }

 private:
  bool next_task() {
    if (task_ == last_task_ && !tasks_.take(task_, last_task_)) return false;
    const int64_t split = task_ % plan_.splits, before = plan_.first_chunk(run_), count = plan_.last_chunk(run_) - before;
    panel_ = task_++ / plan_.splits;
    first_chunk_ = before + count * split / plan_.splits, last_chunk_ = before + count * (split + 1) / plan_.splits;
    begin_chunk(first_chunk_);
    return chunk_ < last_chunk_ || next_task();
  }

  void begin_chunk(int64_t chunk) {
    chunk_ = chunk, kept_ = weights_;
    input_ = inputs_ + (chunk - plan_.first_chunk(run_)) * chunk_size_;
  }

  const Conv& p_;
  const WinogradPlan& plan_;
  const int64_t run_;
  const int16_t* inputs_;
  int16_t* weights_;
  const int64_t chunk_size_;
  Tasks& tasks_;
  int64_t task_ = 0, last_task_ = 0, panel_ = 0, first_chunk_ = 0, chunk_ = 0, last_chunk_ = 0;
  int64_t source_ = 0, block_ = 0, made_ = 0;
  const int16_t* input_ = nullptr;
  int16_t* kept_ = nullptr;
};

void make(const Conv& p, const Step& step, Summation& summation) {
  Aside<BlockWeights> weights(weights_of(p, step), 1);
  summation.know(step, weights.finish());
}

void by_panels(const Conv& p, const WinogradPlan& plan, int64_t run, const int16_t* inputs, const WinogradMemory& memory,
               Tasks& tasks) {
  PanelSteps steps(p, plan, run, inputs, memory.own, tasks);
  Summation summation(p, plan, memory);
  Step step, next;
  bool more = steps.next(step), is_made = false;
  while (more) {
    if (step.makes_weights && !is_made) make(p, step, summation);
    more = steps.next(next);
    is_made = more && next.makes_weights && next.weights != step.weights;
    if (!is_made) {
      Aside<BlockWeights> nothing;
      summation.add(step, nothing);
    } else {
      Aside<BlockWeights> aside(weights_of(p, next), kPositions * row_steps(plan, step.chunk));
      summation.add(step, aside);
      summation.know(next, aside.finish());
    }
    step = next;
  }
}

// ------------------------------------------------------------------------------------------- chunk after chunk

// Calls with each block of a panel's weights and where it lies: (source, block, first element).
template <typename Use>
void each_block(const Conv& p, const Use& use) {
  int64_t first = 0;
  for (int64_t i = 0; i < p.source_count; ++i) {
    const Blocks blocks(p.sources[i].quads);
    for (int64_t b = 0; b < blocks.count; ++b) {
      use(i, b, first);
      first += kPositions * weight_position(blocks.quads_of(b));
    }
  }
}

// A task is a block of a panel's weights.
void make_all_weights(const Conv& p, const WinogradPlan& plan, int16_t* to, Tasks& tasks) {
  const int64_t per_panel = block_count(p);
  int64_t begin, end;
  while (tasks.take(begin, end)) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t panel = task / per_panel;
      int64_t left = task % per_panel;
      each_block(p, [&](int64_t source, int64_t block, int64_t first) {
        if (left-- != 0) return;
        const Blocks blocks(p.sources[source].quads);
        const BlockWeights weights(p, source, panel, block * blocks.size, blocks.quads_of(block), to + panel * plan.sizes.all + first);
        Aside<BlockWeights>(weights, 1).finish();
      });
    }
  }
}

// The numbers of tasks, one by one.
class OneByOne {
 public:
  explicit OneByOne(Tasks& tasks) : tasks_(tasks) {}

  std::optional<int64_t> next() {
    if (at_ == end_ && !tasks_.take(at_, end_)) return {};
    return at_++;
  }

 private:
  Tasks& tasks_;
  int64_t at_ = 0, end_ = 0;
};

void one_chunk(const Conv& p, const WinogradPlan& plan, int64_t chunk, const int16_t* inputs, int16_t* weights,
               Summation& summation, Aside<ChunkInputs>& aside) {
  for (int64_t panel = 0; panel < plan.panels; ++panel) {
    const int16_t* input = inputs;
    each_block(p, [&](int64_t source, int64_t block, int64_t first) {
      summation.add({panel, chunk, source, block, input, weights + panel * plan.sizes.all + first, false}, aside);
      const Blocks blocks(p.sources[source].quads);
      input += input_block_size(blocks.quads_of(block), plan.chunk);
    });
  }
}

void by_chunks(const Conv& p, const WinogradPlan& plan, int16_t* weights, const WinogradMemory& memory, Tasks& tasks) {
  OneByOne chunks(tasks);
  Summation summation(p, plan, memory);
  int16_t *inputs = memory.own, *next_inputs = memory.own + input_chunk_size(p, plan.chunk);
  auto chunk = chunks.next();
  if (chunk) Aside<ChunkInputs>({p, plan, *chunk, inputs}, 1).finish();
  while (chunk) {
    const auto next = chunks.next();
    const int64_t products = plan.panels * block_count(p) * kPositions * row_steps(plan, *chunk);
    Aside<ChunkInputs> aside = next ? Aside<ChunkInputs>({p, plan, *next, next_inputs}, products) : Aside<ChunkInputs>();
    one_chunk(p, plan, *chunk, inputs, weights, summation, aside);
    if (next) aside.finish();
    std::swap(inputs, next_inputs);
    chunk = next;
  }
}

}  // namespace
}  // namespace qdiff
