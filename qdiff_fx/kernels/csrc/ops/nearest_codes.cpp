// Weights as their nearest codes.

#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "core/parallel.h"
#include "core/pool.h"
#include "ops/checks.h"
#include "ops/operators.h"

namespace qdiff {
namespace {

constexpr int64_t kMostCandidates = 1024;
constexpr int kTerms = 5;  // of `NearestCodes::near`

// The polynomial x^2 (c[0] + c[1] x + ...) nearest to x^power on [0, 1], by least squares, then that of |e| = x / 2.
void fit_near_power(double power, float* near) {
  std::array<std::array<double, kTerms + 1>, kTerms> a;  // normal equations: integrals of x^(i + 2) x^(j + 2)
  for (int i = 0; i < kTerms; ++i) {
    for (int j = 0; j < kTerms; ++j) a[i][j] = 1.0 / (i + j + 5);
    a[i][kTerms] = 1.0 / (power + i + 3);
  }
  for (int i = 0; i < kTerms; ++i) {  // positive definite: no pivoting
    for (int row = 0; row < kTerms; ++row) {
      if (row == i) continue;
      const double factor = a[row][i] / a[i][i];
      for (int j = i; j <= kTerms; ++j) a[row][j] -= factor * a[i][j];
    }
  }
  for (int i = 0; i < kTerms; ++i) near[i] = float(std::ldexp(a[i][kTerms] / a[i][i], i + 2) * std::pow(0.5, power));
}

std::vector<NearestCodes::Candidate> candidates_of(int64_t count, double shrink, double power) {
  std::vector<NearestCodes::Candidate> tried;
  for (int64_t i = 0; i < count; ++i) {
    const double ratio = 1 - shrink * double(i);
    tried.push_back({float(ratio), float(1 / ratio), std::pow(ratio, power)});
  }
  return tried;
}

}  // namespace

std::tuple<Tensor, Tensor> nearest_codes(const Tensor& weight, int64_t bits, int64_t candidates, double shrink, double power) {
  constexpr const char* op = "nearest_codes";
  check_plain(weight, op);
  check_float(weight, "the weight", op);
  QDIFF_CHECK(weight.dim() == 2, op, ": expected rows of numbers (out, in), not ", sizes_of(weight));
  check_within(bits, 2, 8, "bits", op);
  check_within(candidates, 1, kMostCandidates, "candidates", op);
  QDIFF_CHECK(shrink > 0 && shrink * double(candidates - 1) < 1, op, ": ", candidates, " candidates cannot shrink by ", shrink,
              " each");
  QDIFF_CHECK(1 <= power && power <= 8, op, ": the power must be 1..8, not ", power);
  const Tensor dense = as_contiguous(weight);
  const Tensor codes = empty(sizes_of(dense), Dtype::Char), scales = empty({dense.size(0)}, Dtype::Float);
  NearestCodes p{};
  p.weight = dense.const_data_ptr(), p.type = type_of(dtype_of(dense));
  p.rows = dense.size(0), p.columns = dense.size(1);
  p.high = (1 << (bits - 1)) - 1, p.low = bits < 8 ? -p.high - 1 : -p.high;
  const auto tried = candidates_of(candidates, shrink, power);
  p.tried = tried.data(), p.candidates = candidates, p.power = float(power);
  fit_near_power(power, p.near);
  p.scratch_numbers = 2 * ceil_div(p.columns, kLanes) * kLanes;
  const Bytes scratch(size_t(std::min(threads.count(), TaskPool::kMaxThreads) * p.scratch_numbers) * sizeof(float));
  p.scratch = scratch.data<float>();
  p.scales = static_cast<float*>(scales.mutable_data_ptr()), p.codes = static_cast<int8_t*>(codes.mutable_data_ptr());
  parallel(p.rows, p.rows * p.columns * candidates, true, [&](Tasks& each) { kernels().nearest_codes(p, each); });
  return {codes, scales};
}

}  // namespace qdiff
