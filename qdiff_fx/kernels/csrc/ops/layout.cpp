#include "ops/layout.h"

#include <torch/csrc/stable/ops.h>

namespace qdiff {
namespace {

bool has_even_pixels(const Sizes& sizes, const Sizes& strides) {
  if (sizes[1] > 1 && strides[1] != 1) return false;
  int64_t expected = -1;
  const auto follows = [&](size_t dim) {
    if (sizes[dim] == 1) return true;
    const bool even = expected < 0 ? strides[dim] >= sizes[1] : strides[dim] == expected;
    expected = strides[dim] * sizes[dim];
    return even;
  };
  for (size_t dim = sizes.size() - 1; dim >= 2; --dim) {
    if (!follows(dim)) return false;
  }
  return follows(0);
}

}  // namespace

Tensor channels_last(const Sizes& sizes, Dtype dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  int64_t step = sizes[1];
  for (size_t dim = sizes.size(); dim-- > 2;) strides[dim] = step, step *= sizes[dim];
  strides[0] = step;
  return pooled(sizes, strides, dtype);
}

Tensor with_even_pixels(const Tensor& x) {
  if (has_even_pixels(sizes_of(x), strides_of(x))) return x;
  Tensor copy = channels_last(sizes_of(x), dtype_of(x));
  copy_into(copy, x);
  return copy;
}

int64_t pixel_stride(const Tensor& x) {
  const Sizes sizes = sizes_of(x);
  for (size_t dim = sizes.size() - 1; dim >= 2; --dim) {
    if (sizes[dim] != 1) return x.stride(int64_t(dim));
  }
  return sizes[0] != 1 ? x.stride(0) : sizes[1];
}

int64_t pixels_of(const Tensor& x) {
  const Sizes sizes = sizes_of(x);
  int64_t count = 1;
  for (size_t dim = 2; dim < sizes.size(); ++dim) count *= sizes[dim];
  return count;
}

Tensor as_rows(const Tensor& x) {
  const Sizes sizes = sizes_of(x), strides = strides_of(x);
  const int64_t columns = sizes.back();
  if (sizes.size() == 2 && (columns == 1 || strides[1] == 1)) return x;
  if (x.is_contiguous()) return viewed(x, {x.numel() / columns, columns}, {columns, 1});
  const Tensor flat =
      sizes.size() == 1 ? viewed(x, {1, columns}, {columns, strides[0]}) : torch::stable::reshape(x, {x.numel() / columns, columns});
  return flat.size(1) == 1 || flat.stride(1) == 1 ? flat : as_contiguous(flat);
}

}  // namespace qdiff
