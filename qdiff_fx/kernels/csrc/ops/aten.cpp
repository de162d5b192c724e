#include "ops/aten.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "core/error.h"

namespace qdiff {

Tensor reshape(const Tensor& x, const Integers& shape) {
  AtenTensorHandle made = nullptr;
  check_call(aoti_torch_cpu_reshape(x.get(), shape.data(), int64_t(shape.size()), &made), "aten::reshape");
  return Tensor(made);
}

Tensor permute(const Tensor& x, const Integers& dims) {
  AtenTensorHandle made = nullptr;
  check_call(aoti_torch_cpu_permute(x.get(), dims.data(), int64_t(dims.size()), &made), "aten::permute");
  return Tensor(made);
}

Tensor unsqueeze(const Tensor& x, int64_t dim) {
  std::vector<int64_t> sizes = sizes_of(x).copy(), strides = strides_of(x).copy();
  const int64_t rank = int64_t(sizes.size()), at = dim < 0 ? dim + rank + 1 : dim;
  QDIFF_CHECK(0 <= at && at <= rank, "Dimension out of range (expected to be in range of [", -rank - 1, ", ", rank, "], but got ",
              dim, ")");
  const int64_t stride = at < rank ? sizes[size_t(at)] * strides[size_t(at)] : 1;
  sizes.insert(sizes.begin() + at, 1), strides.insert(strides.begin() + at, stride);
  return viewed(x, sizes, strides);
}

int64_t size(const Tensor& x, int64_t dim) {
  int64_t found = 0;
  check_call(aoti_torch_get_size(x.get(), dim, &found), "aten::sym_size");
  return found;
}

Tensor add(const Tensor& a, const Tensor& b, double alpha) {
  AtenTensorHandle made = nullptr;
  check_call(aoti_torch_cpu_add_Tensor(a.get(), b.get(), alpha, &made), "aten::add");
  return Tensor(made);
}

}  // namespace qdiff
