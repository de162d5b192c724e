// Weights as their nearest codes.

#include "core/candidates.h"
#include "core/parallel.h"
#include "core/pool.h"
#include "ops/checks.h"
#include "ops/operators.h"

namespace qdiff {
namespace {

constexpr int64_t kMostCandidates = 1024;

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
  const auto tried = candidates_of(candidates, shrink, power);
  set_search(p, int32_t(bits), power, tried);
  const Bytes scratch(size_t(std::min(threads.count(), TaskPool::kMaxThreads) * p.scratch_numbers) * sizeof(float));
  p.scratch = scratch.data<float>();
  p.scales = static_cast<float*>(scales.mutable_data_ptr()), p.codes = static_cast<int8_t*>(codes.mutable_data_ptr());
  parallel(p.rows, p.rows * p.columns * candidates, true, [&](Tasks& each) { kernels().nearest_codes(p, each); });
  return {codes, scales};
}

}  // namespace qdiff
