// An activation function and a quantizer.

#include "ops/pointwise.h"

namespace qdiff {

Tensor act_quantize(const Tensor& x, int64_t activation, Dtype out_dtype, double scale, int64_t zero_point, int64_t low,
                    int64_t high) {
  constexpr const char* op = "act_quantize";
  Pointwise p{};
  p.activation = checked_pointwise(x, activation, op);
  p.quantizer = checked_quantizer(scale, zero_point, low, high, out_dtype, op);
  return run_pointwise(x, p, out_dtype);
}

}  // namespace qdiff
