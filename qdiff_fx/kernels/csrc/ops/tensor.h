// Torch's tensors through its stable interface, which is the same for all releases that this is loaded into.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "core/sizes.h"

namespace qdiff {

using torch::stable::Tensor;
using Dtype = torch::headeronly::ScalarType;
using Tensors = std::vector<Tensor>;
using Integers = std::vector<int64_t>;
using Floats = std::vector<double>;
using OptionalTensor = std::optional<Tensor>;

// Raises what torch raised when a call of its stable interface failed.
[[noreturn]] void fail_like_torch(const char* call);
inline void check_call(bool failed, const char* call) {
  if (failed) [[unlikely]] fail_like_torch(call);
}

Dtype dtype_of(const Tensor& x);
int32_t torch_number(Dtype dtype);  // as torch's stable interface numbers it
size_t item_size(Dtype dtype);
inline Sizes sizes_of(const Tensor& x) { return {x.sizes().data(), x.sizes().size()}; }
inline Sizes strides_of(const Tensor& x) { return {x.strides().data(), x.strides().size()}; }

template <typename T>
const T* data_of(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

// Uninitialised, on the CPU.
Tensor empty(const Sizes& sizes, const Sizes& strides, Dtype dtype);
Tensor empty(const Sizes& sizes, Dtype dtype);  // contiguous
// The same, of large ones with memory that goes back to the pool with the last reference to them.
Tensor pooled(const Sizes& sizes, const Sizes& strides, Dtype dtype);
Tensor pooled(const Sizes& sizes, Dtype dtype);
std::vector<int64_t> contiguous_strides(const Sizes& sizes);

// The same memory in another shape, from the same first element.
Tensor viewed(const Tensor& x, const Sizes& sizes, const Sizes& strides);
Tensor as_contiguous(const Tensor& x);
Tensor converted(const Tensor& x, Dtype dtype);
void copy_into(const Tensor& to, const Tensor& from);

}  // namespace qdiff
