// Threads, whoever has them: torch's, or none.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/kernels.h"

namespace qdiff {

using Range = void (*)(int64_t begin, int64_t end, void* context);

struct Threads {
  int64_t (*count)();
  // Calls `range` with parts of 0 .. count, of at least `grain` each but for the last; at once where there are threads for it.
  void (*each)(int64_t count, int64_t grain, Range range, void* context);
};

// Those of this process: one, until somebody says otherwise.
extern Threads threads;

template <typename Run>
void parallel_ranges(int64_t count, int64_t grain, const Run& run) {
  const Range range = [](int64_t begin, int64_t end, void* context) { (*static_cast<const Run*>(context))(begin, end); };
  threads.each(count, grain, range, const_cast<Run*>(&run));
}

// Every thread calls `run` with its tasks; `work` is that of all of them, in some unit of about a nanosecond.
template <typename Run>
void parallel(int64_t count, int64_t work, bool one_by_one, const Run& run) {
  // A thread is worth waking for some ten microseconds of work.
  constexpr int64_t kWorkPerThread = 1 << 14, kTakesPerThread = 8;
  if (count == 0) return;
  const int64_t most = std::min<int64_t>({count, threads.count(), TaskPool::kMaxThreads});
  TaskPool pool;
  pool.threads = std::clamp<int64_t>(work / kWorkPerThread, 1, most);
  pool.grain = one_by_one ? 1 : std::max<int64_t>(1, count / (pool.threads * kTakesPerThread));
  pool.share(count);
  const auto one = [&](int64_t thread) {
    Tasks tasks{pool, thread};
    run(tasks);
  };
  if (pool.threads == 1) return one(0);
  parallel_ranges(pool.threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) one(thread);
  });
}

}  // namespace qdiff
