// A step of learning how weights are rounded.

#include <cmath>
#include <initializer_list>

#include "core/parallel.h"
#include "ops/checks.h"
#include "ops/operators.h"

namespace qdiff {
namespace {

constexpr int64_t kMostSteps = int64_t{1} << 31;

void check_like(const Tensor& x, const Tensor& like, Dtype dtype, const char* what, const char* op) {
  QDIFF_CHECK(dtype_of(x) == dtype && sizes_of(x) == sizes_of(like) && x.is_contiguous(), op, ": ", what,
              " must be contiguous ", dtype, " ", sizes_of(like), ", not ", dtype_of(x), " ", sizes_of(x));
}

void check_finite(double number, const char* what, const char* op) {
  QDIFF_CHECK(0 <= number && number <= FLT_MAX, op, ": ", what, " must be a finite number of at least 0, not ", number);
}

}  // namespace

void adaround_step(const Tensor& up, const Tensor& first, const Tensor& second, const Tensor& weight, const Tensor& base,
                   const Tensor& scales, const Tensor& gradient, int64_t bits, int64_t step, double rate, double pull,
                   double beta) {
  constexpr const char* op = "adaround_step";
  for (const Tensor* each : {&up, &first, &second, &weight, &base, &scales, &gradient}) check_plain(*each, op);
  QDIFF_CHECK(up.dim() == 2, op, ": expected rows of numbers (out, in), not ", sizes_of(up));
  check_float(weight, "the weight", op), check_float(gradient, "the gradient", op);
  check_like(up, up, Dtype::Float, "V", op);
  check_like(first, up, Dtype::Float, "the first moment", op), check_like(second, up, Dtype::Float, "the second moment", op);
  check_like(weight, up, dtype_of(weight), "the weight", op), check_like(gradient, up, dtype_of(gradient), "the gradient", op);
  check_like(base, up, Dtype::Char, "the codes", op);
  QDIFF_CHECK(dtype_of(scales) == Dtype::Float && sizes_of(scales) == Sizes({up.size(0)}) && scales.is_contiguous(), op,
              ": scales must be contiguous float32 ", Sizes({up.size(0)}), ", not ", dtype_of(scales), " ", sizes_of(scales));
  check_within(bits, 2, 8, "bits", op);
  check_within(step, 1, kMostSteps, "step", op);
  check_finite(rate, "the rate", op), check_finite(pull, "the pull", op);
  check_positive(beta, "beta", op);
  AdaRoundStep p{};
  p.up = static_cast<float*>(up.mutable_data_ptr());
  p.first = static_cast<float*>(first.mutable_data_ptr()), p.second = static_cast<float*>(second.mutable_data_ptr());
  p.weight = weight.mutable_data_ptr(), p.weight_type = type_of(dtype_of(weight));
  p.base = data_of<int8_t>(base), p.scales = data_of<float>(scales);
  p.gradient = gradient.const_data_ptr(), p.gradient_type = type_of(dtype_of(gradient));
  p.rows = up.size(0), p.columns = up.size(1);
  p.high = float((1 << (bits - 1)) - 1), p.low = bits < 8 ? -p.high - 1 : -p.high;
  p.rate = float(rate / (1 - std::pow(0.9, double(step))));
  p.root_correction = float(1 / std::sqrt(1 - std::pow(0.999, double(step))));
  p.pull = float(pull), p.beta = float(beta);
  parallel(p.rows, 4 * p.rows * p.columns, false, [&](Tasks& each) { kernels().adaround_step(p, each); });
}

}  // namespace qdiff
