// Those of torch's operators that plans call most, without its dispatcher; of dense tensors on the CPU.
#pragma once

#include "ops/tensor.h"

namespace qdiff {

Tensor reshape(const Tensor& x, const Integers& shape);
Tensor permute(const Tensor& x, const Integers& dims);
Tensor unsqueeze(const Tensor& x, int64_t dim);
int64_t size(const Tensor& x, int64_t dim);
// Of floating-point numbers. The dispatcher of the stable interface takes no number that may be whole or not.
Tensor add(const Tensor& a, const Tensor& b, double alpha);

}  // namespace qdiff
