// Group norm over one or more tensors side by side, activation, quantizer.

#include <algorithm>

#include "core/parallel.h"
#include "ops/layout.h"
#include "ops/norms.h"

namespace qdiff {
namespace {

// The shape of parts (N, C_i, ...) side by side.
std::vector<int64_t> checked_parts(const Tensors& parts, int64_t groups, const char* op) {
  std::vector<int64_t> sizes;
  for (const Tensor& part : parts) {
    check_float(part, "a part", op);
    const Sizes x = sizes_of(part);
    QDIFF_CHECK(x.size() >= 2 && x[1] > 0, op, ": parts must be (N, C, ...), not ", x);
    if (sizes.empty()) sizes = x.copy(), sizes[1] = 0;
    std::vector<int64_t> others = x.copy();
    others[1] = sizes[1];
    QDIFF_CHECK(others == sizes, op, ": parts ", sizes_of(parts[0]), " and ", x, " differ in more than channels");
    sizes[1] += x[1];
  }
  QDIFF_CHECK(groups > 0 && sizes[1] % groups == 0, op, ": ", sizes[1], " channels do not make ", groups, " groups");
  checked_elements(sizes, op);
  return sizes;
}

}  // namespace

Tensor group_norm_act(const Tensors& parts, int64_t groups, const OptionalTensor& weight, const OptionalTensor& bias,
                      double epsilon, int64_t activation, Dtype out_dtype, double scale, int64_t zero_point, int64_t low,
                      int64_t high) {
  constexpr const char* op = "group_norm_act";
  QDIFF_CHECK(!parts.empty() && parts.size() <= size_t(kMaxParts), op, ": expected 1 to ", kMaxParts, " parts, got ",
              parts.size());
  check_plain(parts, op), check_plain(weight, op), check_plain(bias, op);
  const std::vector<int64_t> sizes = checked_parts(parts, groups, op);
  const auto act = checked_activation(activation, {Activation::none, Activation::silu}, op);
  const auto quantizer = checked_quantizer(scale, zero_point, low, high, out_dtype, op);
  const Dtype first = dtype_of(parts[0]);
  const bool one_type = std::all_of(parts.begin(), parts.end(), [&](const Tensor& part) { return dtype_of(part) == first; });
  const Dtype type = one_type ? first : Dtype::Float;
  Norm p = norm_of(type, weight, bias, sizes[1], epsilon, act, out_dtype, quantizer, op);
  Tensor out = channels_last(sizes, out_dtype);
  if (out.numel() == 0) return out;
  Tensors even;
  even.reserve(parts.size());
  for (const Tensor& part : parts) even.push_back(with_even_pixels(converted(part, type)));
  p.part_count = int64_t(parts.size());
  for (size_t i = 0; i < even.size(); ++i) {
    p.parts[i] = even[i].const_data_ptr();
    p.part_channels[i] = even[i].size(1);
    p.part_stride[i] = pixel_stride(even[i]);
  }
  p.batch = sizes[0], p.pixels = pixels_of(parts[0]), p.groups = groups;
  p.out = out.mutable_data_ptr();
  const int64_t splits = kernels().norm_splits(p, threads.count());
  parallel(p.batch * splits, out.numel() / 4, true, [&](Tasks& each) { kernels().group_norm(p, splits, each); });
  return out;
}

}  // namespace qdiff
