// The scales that `NearestCodes` tries, and how it computes powers: the same for every instruction set.
#pragma once

#include <array>
#include <cmath>
#include <vector>

#include "core/kernels.h"

namespace qdiff {

constexpr int kTerms = 5;  // of `NearestCodes::near`

// The polynomial x^2 (c[0] + c[1] x + ...) nearest to x^power on [0, 1], by least squares, then that of |e| = x / 2.
inline void fit_near_power(double power, float* near) {
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

inline std::vector<NearestCodes::Candidate> candidates_of(int64_t count, double shrink, double power) {
  std::vector<NearestCodes::Candidate> tried;
  for (int64_t i = 0; i < count; ++i) {
    const double ratio = 1 - shrink * double(i);
    tried.push_back({float(ratio), float(1 / ratio), std::pow(ratio, power)});
  }
  return tried;
}

// What is looked for, in codes of so many bits; `tried` has to stay.
inline void set_search(NearestCodes& p, int32_t bits, double power, const std::vector<NearestCodes::Candidate>& tried) {
  p.high = (1 << (bits - 1)) - 1, p.low = bits < 8 ? -p.high - 1 : -p.high;
  p.tried = tried.data(), p.candidates = int64_t(tried.size()), p.power = float(power);
  fit_near_power(power, p.near);
  p.scratch_numbers = 2 * ceil_div(p.columns, kLanes) * kLanes;
}

}  // namespace qdiff
