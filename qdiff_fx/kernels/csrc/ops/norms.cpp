#include "ops/norms.h"

namespace qdiff {

Norm norm_of(Dtype type, const OptionalTensor& weight, const OptionalTensor& bias, int64_t channels, double epsilon,
             Activation activation, Dtype out_dtype, const Quantizer& quantizer, const char* op) {
  check_epsilon(epsilon, op);
  Norm p{};
  p.type = type_of(type);
  p.channels = channels;
  p.weight = checked_floats(weight, channels, "the weight", op);
  p.bias = checked_floats(bias, channels, "the bias", op);
  p.epsilon = epsilon;
  p.activation = activation;
  p.out_type = type_of(out_dtype);
  p.out_stride = channels;
  p.quantizer = quantizer;
  return p;
}

}  // namespace qdiff
