// What quantizing each of some distributions costs under each of many grids.

#include <algorithm>

#include "core/parallel.h"
#include "core/pool.h"
#include "ops/checks.h"
#include "ops/operators.h"

namespace qdiff {
namespace {

constexpr const char* kOp = "range_errors";

Tensor numbers_of(const Tensor& x, const Integers& shape, const char* what) {
  check_plain(x, kOp);
  QDIFF_CHECK(dtype_of(x) == Dtype::Float, kOp, ": ", what, " must be float32");
  const bool fits = std::equal(shape.begin(), shape.end(), x.sizes().begin(), x.sizes().end());
  QDIFF_CHECK(fits, kOp, ": ", what, " must have the shape ", Sizes{shape.data(), shape.size()}, ", not ", sizes_of(x));
  return as_contiguous(x);
}

}  // namespace

Tensor range_errors(const Tensor& edges, const Tensor& density, const Integers& bins, const Tensor& scales,
                    const Tensor& firsts, const Tensor& lasts, double power) {
  const int64_t count = bins.size();
  QDIFF_CHECK(scales.dim() == 2 && scales.size(0) == count, kOp, ": there must be a row of scales for each distribution");
  QDIFF_CHECK(1 <= power && power <= 8, kOp, ": the power must be 1..8, not ", power);
  Integers begins(count + 1, 0);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t left = density.numel() - begins[i];  // so that sums cannot overflow
    QDIFF_CHECK(0 < bins[i] && bins[i] <= left, kOp, ": a distribution cannot have ", bins[i], " bins, ", left, " are left");
    begins[i + 1] = begins[i] + bins[i];
  }
  const int64_t all = begins[count], grids = scales.size(1);
  const Tensor dense[] = {numbers_of(edges, {all + count}, "the edges"), numbers_of(density, {all}, "the density"),
                          numbers_of(scales, {count, grids}, "the scales"),
                          numbers_of(firsts, {count, grids}, "the first multiples"),
                          numbers_of(lasts, {count, grids}, "the last multiples")};
  const auto at = [&](int i) { return static_cast<const float*>(dense[i].const_data_ptr()); };
  const Tensor errors = empty({count, grids}, Dtype::Float);
  const RangeErrors p{at(0), at(1),        begins.data(), grids, at(2), at(3),
                      at(4), float(power), static_cast<float*>(errors.mutable_data_ptr())};
  parallel(count * grids, grids * all * 4, true, [&](Tasks& each) { kernels().range_errors(p, each); });
  return errors;
}

}  // namespace qdiff
