// What quantizing a distribution costs under each of many grids.

#include "core/parallel.h"
#include "core/pool.h"
#include "ops/checks.h"
#include "ops/operators.h"

namespace qdiff {
namespace {

constexpr const char* kOp = "range_errors";

Tensor numbers_of(const Tensor& x, int64_t count, const char* what) {
  check_plain(x, kOp);
  QDIFF_CHECK(dtype_of(x) == Dtype::Float, kOp, ": ", what, " must be float32");
  QDIFF_CHECK(x.dim() == 1 && x.size(0) == count, kOp, ": expected ", count, " numbers of ", what, ", not ", sizes_of(x));
  return as_contiguous(x);
}

}  // namespace

Tensor range_errors(const Tensor& edges, const Tensor& density, const Tensor& scales, const Tensor& firsts, const Tensor& lasts,
                    double power) {
  QDIFF_CHECK(density.dim() == 1 && scales.dim() == 1, kOp, ": the density and the scales must be lists");
  QDIFF_CHECK(1 <= power && power <= 8, kOp, ": the power must be 1..8, not ", power);
  const int64_t bins = density.size(0), grids = scales.size(0);
  const Tensor dense[] = {numbers_of(edges, bins + 1, "the edges"), numbers_of(density, bins, "the density"),
                          numbers_of(scales, grids, "the scales"), numbers_of(firsts, grids, "the first multiples"),
                          numbers_of(lasts, grids, "the last multiples")};
  const auto at = [&](int i) { return static_cast<const float*>(dense[i].const_data_ptr()); };
  const Tensor errors = empty({grids}, Dtype::Float);
  const RangeErrors p{at(0), at(1), bins, at(2), at(3), at(4), float(power), static_cast<float*>(errors.mutable_data_ptr())};
  parallel(grids, grids * bins * 4, true, [&](Tasks& each) { kernels().range_errors(p, each); });
  return errors;
}

}  // namespace qdiff
