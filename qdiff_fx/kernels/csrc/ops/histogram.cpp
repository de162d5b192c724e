// Histograms of what is watched.

#include <algorithm>

#include "core/parallel.h"
#include "core/pool.h"
#include "ops/checks.h"
#include "ops/operators.h"

namespace qdiff {

Tensor histogram(const Tensor& rows, int64_t exponent, int64_t bins, int64_t step) {
  constexpr const char* op = "histogram";
  check_plain(rows, op);
  check_float(rows, "its input", op);
  QDIFF_CHECK(rows.dim() == 2, op, ": expected rows of numbers, not ", sizes_of(rows));
  check_within(exponent, -100, 127, "the exponent", op);
  check_within(bins, 2, 1 << 15, "bins", op);
  check_within(step, 1, kMostElements, "the step", op);
  const Tensor dense = as_contiguous(rows);
  Histogram p{};
  p.in = dense.const_data_ptr(), p.type = type_of(dtype_of(dense));
  p.rows = dense.size(0), p.columns = dense.size(1), p.step = step;
  if (p.step == 1) p.columns *= p.rows, p.rows = 1;  // no matter where rows end
  p.exponent = int32_t(exponent), p.bins = bins;
  const int64_t counted = p.rows * counted_columns(p);
  QDIFF_CHECK(counted <= UINT32_MAX, op, ": ", counted, " numbers are more than can be counted at once");
  const int64_t counters = std::min(threads.count(), TaskPool::kMaxThreads) * kCounters;
  const Bytes counts(size_t(counters * bins) * sizeof(uint32_t));
  p.counts = counts.data<uint32_t>();
  std::fill(p.counts, p.counts + counters * bins, 0);
  parallel(p.rows * histogram_tasks_of_row(p), counted, false, [&](Tasks& each) { kernels().histogram(p, each); });
  const Tensor found = empty({bins}, Dtype::Long);
  auto* to = static_cast<int64_t*>(found.mutable_data_ptr());
  std::fill(to, to + bins, 0);
  for (int64_t i = 0; i < counters; ++i) {
    for (int64_t bin = 0; bin < bins; ++bin) to[bin] += p.counts[i * bins + bin];
  }
  return found;
}

}  // namespace qdiff
