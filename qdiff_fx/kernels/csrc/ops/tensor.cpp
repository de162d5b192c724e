#include "ops/tensor.h"

#include <torch/csrc/stable/ops.h>

#include <array>
#include <string>

#include "core/error.h"
#include "core/pool.h"

// Releases before 2.13 do not have it: there torch writes its reason to the error output.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace qdiff {
namespace {

constexpr size_t kMost = size_t{1} << 38;  // bytes of one tensor; operators check sizes long before

// Each dtype with torch's number for it.
struct Numbered {
  Dtype dtype;
  int32_t (*number)();
};
constexpr Numbered kNumbered[] = {
    {Dtype::Byte, aoti_torch_dtype_uint8},           {Dtype::Char, aoti_torch_dtype_int8},
    {Dtype::Short, aoti_torch_dtype_int16},          {Dtype::Int, aoti_torch_dtype_int32},
    {Dtype::Long, aoti_torch_dtype_int64},           {Dtype::Half, aoti_torch_dtype_float16},
    {Dtype::Float, aoti_torch_dtype_float32},        {Dtype::Double, aoti_torch_dtype_float64},
    {Dtype::ComplexHalf, aoti_torch_dtype_complex32}, {Dtype::ComplexFloat, aoti_torch_dtype_complex64},
    {Dtype::ComplexDouble, aoti_torch_dtype_complex128}, {Dtype::Bool, aoti_torch_dtype_bool},
    {Dtype::BFloat16, aoti_torch_dtype_bfloat16},
};
constexpr int kDtypes = 64;  // more than there are

struct Numbers {
  std::array<Dtype, kDtypes> dtypes;
  std::array<int32_t, kDtypes> numbers;

  Numbers() {
    dtypes.fill(Dtype::Undefined), numbers.fill(-1);
    for (const auto& [dtype, number] : kNumbered) {
      dtypes.at(size_t(number())) = dtype;
      numbers.at(size_t(dtype)) = number();
    }
  }
};
const Numbers& numbers() {
  static const Numbers known;
  return known;
}

}  // namespace

void fail_like_torch(const char* call) {
  const char* why = torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace() : nullptr;
  if (why && *why) throw Error(why);
  fail("qdiff: ", call, " failed; torch has written why to the error output");
}

Dtype dtype_of(const Tensor& x) {
  int32_t number = -1;
  check_call(aoti_torch_get_dtype(x.get(), &number), "dtype");
  return 0 <= number && number < kDtypes ? numbers().dtypes[size_t(number)] : Dtype::Undefined;
}

int32_t torch_number(Dtype dtype) {
  const size_t at = size_t(dtype);
  QDIFF_CHECK(at < kDtypes && numbers().numbers[at] >= 0, "qdiff: ", dtype, " is no dtype of ours");
  return numbers().numbers[at];
}

size_t item_size(Dtype dtype) { return aoti_torch_dtype_element_size(torch_number(dtype)); }

std::vector<int64_t> contiguous_strides(const Sizes& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t dim = sizes.size(); dim-- > 1;) strides[dim - 1] = strides[dim] * std::max<int64_t>(1, sizes[dim]);
  return strides;
}

Tensor empty(const Sizes& sizes, const Sizes& strides, Dtype dtype) {
  AtenTensorHandle made = nullptr;
  check_call(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), torch_number(dtype),
                                      aoti_torch_device_type_cpu(), -1, &made),
             "empty_strided");
  return Tensor(made);
}

Tensor empty(const Sizes& sizes, Dtype dtype) { return empty(sizes, contiguous_strides(sizes), dtype); }

Tensor pooled(const Sizes& sizes, const Sizes& strides, Dtype dtype) {
  size_t last = 0;
  for (const int64_t size : sizes) {
    QDIFF_CHECK(size >= 0, "qdiff: there is no size ", size);
    if (size == 0) return empty(sizes, strides, dtype);
  }
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    const size_t size = size_t(sizes[dim]) - 1, stride = size_t(strides[dim]);
    QDIFF_CHECK(size == 0 || stride <= (kMost - last) / size, "qdiff: a result ", sizes, " is too large");
    last += size * stride;
  }
  const size_t bytes = (last + 1) * item_size(dtype);
  if (bytes < kLeastPooled) return empty(sizes, strides, dtype);
  const size_t taken = pooled_size(bytes);
  void* memory = take_pooled(taken);
  AtenTensorHandle made = nullptr;
  const auto give_back = [](void* data, void* size) { give_back_pooled(data, reinterpret_cast<size_t>(size)); };
  if (torch_from_blob(memory, int64_t(sizes.size()), sizes.data(), strides.data(), 0, torch_number(dtype),
                      aoti_torch_device_type_cpu(), -1, &made, aoti_torch_layout_strided(), nullptr, 0, give_back,
                      reinterpret_cast<void*>(taken))) {
    give_back_pooled(memory, taken);
    fail_like_torch("from_blob");
  }
  return Tensor(made);
}

Tensor pooled(const Sizes& sizes, Dtype dtype) { return pooled(sizes, contiguous_strides(sizes), dtype); }

Tensor viewed(const Tensor& x, const Sizes& sizes, const Sizes& strides) {
  AtenTensorHandle made = nullptr;
  check_call(aoti_torch__reinterpret_tensor(x.get(), int64_t(sizes.size()), sizes.data(), strides.data(), 0, &made),
             "as_strided");
  return Tensor(made);
}

Tensor as_contiguous(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

Tensor converted(const Tensor& x, Dtype dtype) { return dtype_of(x) == dtype ? x : torch::stable::to(x, dtype); }

void copy_into(const Tensor& to, const Tensor& from) {
  check_call(aoti_torch_copy_(to.get(), from.get(), 0), "copy_");
}

}  // namespace qdiff
