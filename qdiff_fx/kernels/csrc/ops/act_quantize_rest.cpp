// The second code of a 16-bit input: what the first leaves over.

#include "ops/pointwise.h"

namespace qdiff {

Tensor act_quantize_rest(const Tensor& x, int64_t activation, double scale, int64_t zero_point, int64_t low, int64_t high,
                         double rest_scale, int64_t rest_zero_point) {
  constexpr const char* op = "act_quantize_rest";
  Pointwise p{};
  p.activation = checked_pointwise(x, activation, op);
  p.quantizer = checked_quantizer(scale, zero_point, low, high, Dtype::Byte, op);
  p.of_rest = true, p.rest = checked_quantizer(rest_scale, rest_zero_point, 0, 255, Dtype::Byte, op);
  return run_pointwise(x, p, Dtype::Byte);
}

}  // namespace qdiff
