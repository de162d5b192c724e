#include "ops/pointwise.h"

#include <algorithm>
#include <numeric>

#include "core/parallel.h"
#include "ops/layout.h"

namespace qdiff {
namespace {

// Whether its elements fill a piece of memory, in whatever order.
bool is_dense(const Sizes& sizes, const Sizes& strides) {
  std::vector<size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::erase_if(order, [&](size_t dim) { return sizes[dim] == 1; });
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return strides[a] < strides[b]; });
  int64_t expected = 1;
  for (const size_t dim : order) {
    if (strides[dim] != expected) return false;
    expected *= sizes[dim];
  }
  return true;
}

void run_rows(const Pointwise& p, int64_t work) {
  parallel(p.rows, work, false, [&](Tasks& each) { kernels().pointwise(p, each); });
}

// Elementwise, so any tensor without holes is one long row, and the result lies in memory as x does.
Tensor run_dense(const Tensor& x, Pointwise p, Dtype out_dtype) {
  const bool as_it_is = x.is_contiguous() || x.numel() == 0 || is_dense(sizes_of(x), strides_of(x));
  const Tensor dense = as_it_is ? x : as_contiguous(x);
  Tensor out = pooled(sizes_of(dense), strides_of(dense), out_dtype);
  constexpr int64_t kRow = 1024;
  const int64_t count = x.numel();
  p.in = dense.const_data_ptr(), p.out = out.mutable_data_ptr();
  p.channels = p.in_stride = p.out_stride = kRow, p.rows = count / kRow;
  run_rows(p, p.rows * kRow / 4);
  if (count % kRow) {
    p.in = static_cast<const char*>(p.in) + p.rows * kRow * int64_t(item_size(dtype_of(x)));
    p.out = static_cast<char*>(p.out) + p.rows * kRow * int64_t(item_size(out_dtype));
    p.channels = count % kRow;
    p.rows = 1;
    run_rows(p, 1);
  }
  return out;
}

}  // namespace

Activation checked_pointwise(const Tensor& x, int64_t activation, const char* op) {
  check_plain(x, op);
  check_float(x, "its input", op);
  const auto act = checked_activation(
      activation, {Activation::none, Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::geglu, Activation::relu}, op);
  QDIFF_CHECK(act != Activation::geglu || (x.dim() >= 1 && sizes_of(x).back() % 2 == 0), op, ": geglu expects (..., 2 C), not ",
              sizes_of(x));
  return act;
}

Tensor run_pointwise(const Tensor& x, Pointwise p, Dtype out_dtype) {
  p.type = type_of(dtype_of(x)), p.out_type = type_of(out_dtype);
  if (p.activation != Activation::geglu) return run_dense(x, p, out_dtype);
  std::vector<int64_t> sizes = sizes_of(x).copy();
  sizes.back() /= 2;
  Tensor out = pooled(sizes, out_dtype);
  if (out.numel() == 0) return out;
  const Tensor rows = as_rows(x);
  p.rows = rows.size(0), p.channels = sizes.back(), p.in_stride = rows.stride(0), p.out_stride = p.channels;
  p.in = rows.const_data_ptr(), p.out = out.mutable_data_ptr();
  run_rows(p, out.numel() / 4);
  return out;
}

}  // namespace qdiff
