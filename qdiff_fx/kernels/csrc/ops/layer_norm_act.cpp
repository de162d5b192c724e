// Layer norm and quantizer.

#include "core/parallel.h"
#include "ops/layout.h"
#include "ops/norms.h"

namespace qdiff {

Tensor layer_norm_act(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double epsilon, Dtype out_dtype,
                      double scale, int64_t zero_point, int64_t low, int64_t high) {
  constexpr const char* op = "layer_norm_act";
  check_plain(x, op), check_plain(weight, op), check_plain(bias, op);
  check_float(x, "its input", op);
  const Sizes sizes = sizes_of(x);
  QDIFF_CHECK(!sizes.empty() && sizes.back() > 0, op, ": expected (..., C), not ", sizes);
  const auto quantizer = checked_quantizer(scale, zero_point, low, high, out_dtype, op);
  Norm p = norm_of(dtype_of(x), weight, bias, sizes.back(), epsilon, Activation::none, out_dtype, quantizer, op);
  Tensor out = pooled(sizes, out_dtype);
  if (out.numel() == 0) return out;
  const Tensor rows = as_rows(x);
  p.parts[0] = rows.const_data_ptr(), p.part_channels[0] = p.channels, p.part_stride[0] = rows.stride(0), p.part_count = 1;
  p.out = out.mutable_data_ptr();
  parallel(rows.size(0), out.numel() / 4, false, [&](Tasks& each) { kernels().layer_norm(p, each); });
  return out;
}

}  // namespace qdiff
