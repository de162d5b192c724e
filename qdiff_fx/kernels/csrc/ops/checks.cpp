#include "ops/checks.h"

namespace qdiff {

Type type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::Float: return Type::f32;
    case Dtype::Half: return Type::f16;
    case Dtype::BFloat16: return Type::bf16;
    case Dtype::Byte: return Type::u8;
    case Dtype::Char: return Type::s8;
    default: fail("qdiff: ", dtype, " is not float32, float16, bfloat16, uint8 or int8");
  }
}

namespace {

bool is_dense(const Tensor& x) {
  static const int32_t strided = aoti_torch_layout_strided();
  int32_t layout = -1;
  int64_t* sizes = nullptr;
  // Nested tensors call themselves strided, and have no sizes.
  return !aoti_torch_get_layout(x.get(), &layout) && layout == strided && !aoti_torch_get_sizes(x.get(), &sizes);
}

// Those that torch's stable interface does not know, of quantized and packed numbers, are no real numbers of ours either.
bool is_real(Dtype dtype) {
  return dtype != Dtype::ComplexHalf && dtype != Dtype::ComplexFloat && dtype != Dtype::ComplexDouble &&
         dtype != Dtype::Undefined;
}

}  // namespace

void check_plain(const Tensor& x, const char* op) {
  QDIFF_CHECK(x.defined(), op, ": a tensor is missing");
  QDIFF_CHECK(x.is_cpu(), op, ": its tensors have to be on one device, not on cpu and another");
  QDIFF_CHECK(is_dense(x) && is_real(dtype_of(x)), op, ": takes dense tensors of real numbers, not those of ", dtype_of(x));
  const Sizes sizes = sizes_of(x);
  QDIFF_CHECK(x.numel() <= kMostElements, op, ": a tensor ", sizes, " of more than ", kMostElements, " elements");
  for (const int64_t size : sizes) {  // of none there may still be any number of columns
    QDIFF_CHECK(size <= kMostElements, op, ": a tensor ", sizes, " of more than ", kMostElements, " elements");
  }
}

void check_plain(const Tensors& tensors, const char* op) {
  for (const Tensor& x : tensors) check_plain(x, op);
}

void check_plain(const OptionalTensor& x, const char* op) {
  if (x.has_value()) check_plain(*x, op);
}

void check_float(const Tensor& x, const char* what, const char* op) {
  QDIFF_CHECK(is_floats(dtype_of(x)), op, ": ", what, " must be float32, float16 or bfloat16, not ", dtype_of(x));
}

Quantizer checked_quantizer(double scale, int64_t zero_point, int64_t low, int64_t high, Dtype dtype, const char* op) {
  if (is_floats(dtype)) return {1.0f, 0, 0, 0};
  QDIFF_CHECK(is_codes(dtype), op, ": out_dtype must be float32, float16, bfloat16, uint8 or int8, not ", dtype);
  check_positive(scale, "the scale", op);
  const int64_t least = dtype == Dtype::Byte ? 0 : -128;
  QDIFF_CHECK(least <= low && low <= high && high <= least + 255, op, ": codes from ", low, " to ", high, " do not fit ",
              dtype);
  QDIFF_CHECK(low <= zero_point && zero_point <= high, op, ": zero point ", zero_point, " is not one of the codes ", low,
              " to ", high);
  return {float(scale), int32_t(zero_point), int32_t(low), int32_t(high)};
}

const float* checked_floats(const OptionalTensor& x, int64_t count, const char* what, const char* op) {
  if (!x.has_value()) return nullptr;
  QDIFF_CHECK(dtype_of(*x) == Dtype::Float && x->dim() == 1 && x->size(0) == count && x->is_contiguous(), op, ": ", what,
              " must hold ", count, " contiguous float32 numbers, not ", dtype_of(*x), " ", sizes_of(*x));
  return data_of<float>(*x);
}

}  // namespace qdiff
