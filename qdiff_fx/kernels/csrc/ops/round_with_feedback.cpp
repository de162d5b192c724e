// Some columns of a weight as codes, with error feedback.

#include <algorithm>
#include <tuple>

#include "core/parallel.h"
#include "ops/checks.h"
#include "ops/operators.h"

namespace qdiff {
namespace {

constexpr const char* kOp = "round_with_feedback";

const float* checked_matrix(const Tensor& x, const char* what, int64_t rows, int64_t columns) {
  QDIFF_CHECK(dtype_of(x) == Dtype::Float && sizes_of(x) == Sizes({rows, columns}) && x.is_contiguous(), kOp, ": ", what,
              " must be contiguous float32 ", Sizes({rows, columns}), ", not ", dtype_of(x), " ", sizes_of(x));
  return data_of<float>(x);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> round_with_feedback(const Tensor& steps, const Tensor& pull, const Tensor& factor, int64_t low,
                                                       int64_t high) {
  check_plain(steps, kOp), check_plain(pull, kOp), check_plain(factor, kOp);
  QDIFF_CHECK(steps.dim() == 2, kOp, ": steps must be (K, O), not ", sizes_of(steps));
  FeedbackRounding p{};
  p.columns = steps.size(0), p.channels = steps.size(1);
  check_within(p.columns, 1, kMostFeedbackColumns, "the number of columns", kOp);
  QDIFF_CHECK(-128 <= low && low <= high && high <= 127, kOp, ": codes from ", low, " to ", high, " do not fit int8");
  p.steps = checked_matrix(steps, "steps", p.columns, p.channels);
  p.pull = checked_matrix(pull, "the pull", p.columns, p.channels);
  p.factor = checked_matrix(factor, "the factor", p.columns, p.columns);
  p.low = float(low), p.high = float(high);
  const Tensor codes = empty({p.columns, p.channels}, Dtype::Char), left = empty({p.columns, p.channels}, Dtype::Float);
  const Tensor error = empty({p.channels}, Dtype::Float);
  p.codes = static_cast<int8_t*>(codes.mutable_data_ptr());
  p.left = static_cast<float*>(left.mutable_data_ptr());
  p.error = static_cast<float*>(error.mutable_data_ptr());
  const int64_t work = p.channels * p.columns * p.columns / 32;
  parallel(ceil_div(p.channels, kFeedbackChannels), work, true, [&](Tasks& tasks) { kernels().round_with_feedback(p, tasks); });
  return {codes, left, error};
}

}  // namespace qdiff
