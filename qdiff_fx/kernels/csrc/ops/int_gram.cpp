// Second moments of codes: X'X, added to what there is.

#include "core/parallel.h"
#include "core/pool.h"
#include "ops/checks.h"
#include "ops/operators.h"

namespace qdiff {
namespace {

constexpr int64_t kMostRows = INT32_MAX / (128 * 128);  // whose products cannot exceed 32 bits

void run_gram(const SecondMoments& moments, const Gram& p) {
  const Bytes memory(size_t(moments.bytes(p)));
  const double products = double(p.rows) * double(p.columns) * double(p.columns + 1) / 2;
  const int64_t work = int64_t(products / 256);  // as dots are of four, some 64 a nanosecond
  for (int64_t run = 0; run < moments.runs(p); ++run) {
    parallel(moments.pack_tasks(p), work, true, [&](Tasks& tasks) { moments.pack(p, run, memory.data(), tasks); });
    parallel(moments.tasks(p), work, true, [&](Tasks& tasks) { moments.multiply(p, run, memory.data(), tasks); });
  }
}

}  // namespace

void int_gram(const Tensor& total, const Tensor& rows) {
  constexpr const char* op = "int_gram";
  check_plain(total, op), check_plain(rows, op);
  QDIFF_CHECK(dtype_of(rows) == Dtype::Char && rows.dim() == 2, op, ": rows must be int8 (R, K), not ", dtype_of(rows), " ",
              sizes_of(rows));
  const int64_t columns = rows.size(1);
  QDIFF_CHECK(rows.size(0) <= kMostRows, op, ": takes ", kMostRows, " rows at most, not ", rows.size(0));
  QDIFF_CHECK(dtype_of(total) == Dtype::Int && sizes_of(total) == Sizes({columns, columns}) && total.is_contiguous(), op,
              ": the total must be contiguous int32 ", Sizes({columns, columns}), ", not ", dtype_of(total), " ", sizes_of(total));
  if (columns == 0) return;
  const Tensor dense = as_contiguous(rows);
  run_gram(*kernels().second_moments,
           {data_of<int8_t>(dense), rows.size(0), columns, static_cast<int32_t*>(total.mutable_data_ptr())});
}

}  // namespace qdiff
