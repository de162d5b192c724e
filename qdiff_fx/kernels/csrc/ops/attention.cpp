// qdiff::int_attention_vnni on CPU: checks, memory layout, threads. The arithmetic is in a Kernel.

#include "ops/checks.h"
#include "core/kernels.h"
#include "ops/pool.h"

#include <ATen/ExpandUtils.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace {

using at::Tensor;
using qdiff::check_plain;
using qdiff::checked_quantizer;
using qdiff::type_of;
using OptionalTensor = std::optional<Tensor>;

constexpr const char* kOp = "int_attention";

const qdiff::Kernel& kernel() { return *qdiff::kKernels.attention; }

void check_codes(const Tensor& q, const Tensor& k, const Tensor& v) {
  check_plain(q, kOp), check_plain(k, kOp), check_plain(v, kOp);
  TORCH_CHECK(q.scalar_type() == at::kByte && k.scalar_type() == at::kChar && v.scalar_type() == at::kChar,
              "int_attention: q must be uint8, k and v int8, not ", q.scalar_type(), ", ", k.scalar_type(),
              ", ", v.scalar_type());
  TORCH_CHECK(q.dim() >= 2, "int_attention: q needs at least 2 dims (..., L, D), not ", q.dim());
  const bool same_lead = k.dim() == q.dim() && k.size(-1) == q.size(-1) &&
                         k.sizes().slice(0, k.dim() - 2) == q.sizes().slice(0, q.dim() - 2);
  TORCH_CHECK(k.sizes() == v.sizes() && same_lead,
              "int_attention: shapes must be q (..., L, D), k and v (..., S, D), not ", q.sizes(), ", ",
              k.sizes(), ", ", v.sizes());
}

bool is_float(at::ScalarType dtype) { return qdiff::is_floats(dtype) || dtype == at::kDouble; }

void check_mask(const Tensor& mask, at::IntArrayRef scores) {
  TORCH_CHECK(mask.scalar_type() == at::kBool || is_float(mask.scalar_type()),
              "int_attention: mask must be bool or floating, not ", mask.scalar_type());
  TORCH_CHECK(at::is_expandable_to(mask.sizes(), scores), "int_attention: mask ", mask.sizes(),
              " does not broadcast to ", scores);
}

// All that can be said without the numbers that tensors hold.
void check_all(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask, double softmax_scale,
               int64_t prob_bits, at::ScalarType out_dtype) {
  check_plain(mask, kOp);
  check_codes(q, k, v);
  if (mask.has_value()) {
    std::vector<int64_t> scores = q.sizes().vec();
    scores.back() = k.size(-2);
    check_mask(*mask, scores);
  }
  qdiff::check_positive(softmax_scale, "softmax_scale", kOp);
  qdiff::check_within(prob_bits, 1, 16, "prob_bits", kOp);
  TORCH_CHECK(is_float(out_dtype), "int_attention: out_dtype must be floating, not ", out_dtype);
}

// (..., T, D) as (batch, heads, T, D).
Tensor as_heads(const Tensor& x) {
  if (x.dim() == 4) return x;
  if (x.dim() == 3) return x.unsqueeze(1);
  if (x.dim() == 2) return x.unsqueeze(0).unsqueeze(0);
  return x.flatten(0, -3).unsqueeze(1);
}

Tensor with_unit_stride(const Tensor& x) { return x.stride(-1) == 1 || x.size(-1) == 1 ? x : x.contiguous(); }

// Without the dims that only repeat one element, so converting it does not materialise the repetition.
Tensor without_repeats(Tensor mask) {
  for (int64_t dim = 0; dim < mask.dim(); ++dim) {
    if (mask.stride(dim) == 0) mask = mask.narrow(dim, 0, std::min<int64_t>(mask.size(dim), 1));
  }
  return mask;
}

Tensor as_additive(const Tensor& mask) {
  if (mask.scalar_type() != at::kBool) return mask.to(at::kFloat);
  Tensor added = at::empty(mask.sizes(), mask.options().dtype(at::kFloat));
  return added.zero_().masked_fill_(mask.logical_not(), -std::numeric_limits<float>::infinity());
}

// The mask as float to add, (batch, heads, L, S), unit stride over keys.
OptionalTensor additive_mask(const OptionalTensor& mask, const Tensor& q, int64_t key_len) {
  if (!mask.has_value()) return std::nullopt;
  std::vector<int64_t> scores = q.sizes().vec();
  scores.back() = key_len;
  Tensor added = as_additive(without_repeats(*mask));
  std::vector<int64_t> rows = added.sizes().vec();
  if (rows.empty()) rows.push_back(1);
  rows.back() = key_len;
  return as_heads(with_unit_stride(added.expand(rows)).expand(scores));
}

// Tokens outside heads when q is laid out so: the caller transposes the result back for free.
Tensor allocate_output(const Tensor& q, at::ScalarType dtype) {
  const bool tokens_outside = q.dim() == 4 && q.size(1) > 1 && q.size(2) > 1 && q.stride(1) < q.stride(2);
  if (!tokens_outside) return qdiff::pooled(q.sizes(), dtype);
  return qdiff::pooled({q.size(0), q.size(2), q.size(1), q.size(3)}, dtype).transpose(1, 2);
}

void copy_strides(int64_t (&to)[3], const Tensor& x) {
  for (int64_t dim = 0; dim < 3; ++dim) to[dim] = x.stride(dim);
}

void execute(const qdiff::Attention& problem) {
  const qdiff::Plan plan = kernel().plan(problem);
  const auto bytes = at::TensorOptions().dtype(at::kByte);
  const Tensor packed = at::empty({static_cast<int64_t>(plan.packed_bytes)}, bytes);
  const int64_t scratch_bytes = static_cast<int64_t>(plan.scratch_bytes);
  uint8_t* packed_data = packed.data_ptr<uint8_t>();
  constexpr int64_t kPackGrain = 16;
  at::parallel_for(0, plan.pack_tasks, kPackGrain,
                   [&](int64_t begin, int64_t end) { kernel().pack(problem, packed_data, begin, end); });
  // A thread is worth waking for about a hundred microseconds of work.
  constexpr int64_t kMacsPerThread = 8'000'000;
  const int64_t grain = std::max<int64_t>(1, kMacsPerThread / std::max<int64_t>(1, plan.attend_macs));
  at::parallel_for(0, plan.attend_tasks, grain, [&](int64_t begin, int64_t end) {
    const Tensor scratch = at::empty({scratch_bytes}, bytes);
    kernel().attend(problem, packed_data, scratch.data_ptr<uint8_t>(), begin, end);
  });
}

bool takes(const Tensor& q, const Tensor& k, int64_t prob_bits) {
  return q.size(-1) <= kernel().max_head_dim && k.size(-2) <= kernel().max_key_len &&
         (int64_t{1} << prob_bits) - 1 <= kernel().max_levels;
}

using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&,
                         const Tensor&, const Tensor&, const Tensor&, double, int64_t, at::ScalarType);

// The plain-torch operator, for calls no kernel takes.
const c10::TypedOperatorHandle<Signature>& reference() {
  static const auto handle =
      c10::Dispatcher::singleton().findSchemaOrThrow("qdiff::int_attention", "").typed<Signature>();
  return handle;
}

qdiff::Attention describe(const Tensor& queries, const Tensor& keys, const Tensor& values,
                          const OptionalTensor& mask, const Tensor& out) {
  qdiff::Attention problem{};
  problem.q = queries.const_data_ptr<uint8_t>();
  problem.k = keys.const_data_ptr<int8_t>();
  problem.v = values.const_data_ptr<int8_t>();
  problem.mask = mask ? mask->const_data_ptr<float>() : nullptr;
  problem.out = out.data_ptr();
  problem.batch = queries.size(0);
  problem.heads = queries.size(1);
  problem.query_len = queries.size(2);
  problem.key_len = keys.size(2);
  problem.head_dim = queries.size(3);
  copy_strides(problem.q_stride, queries);
  copy_strides(problem.k_stride, keys);
  copy_strides(problem.v_stride, values);
  copy_strides(problem.out_stride, out);
  if (mask) copy_strides(problem.mask_stride, *mask);
  return problem;
}

// For codes of a call that no kernel takes.
Tensor act_quantize(const Tensor& x, int64_t activation, at::ScalarType dtype, double scale, int64_t zero_point,
                    int64_t low, int64_t high) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("qdiff::act_quantize", "")
                                 .typed<Tensor(const Tensor&, int64_t, at::ScalarType, double, int64_t, int64_t, int64_t)>();
  return handle.call(x, activation, dtype, scale, zero_point, low, high);
}

struct Numbers {
  double q_scale;
  int64_t q_zero_point;
  double k_scale, v_scale, softmax_scale;
  int64_t prob_bits;
};

void check_numbers(const Numbers& numbers) {
  qdiff::check_positive(numbers.q_scale, "q_scale", kOp);
  qdiff::check_positive(numbers.k_scale, "k_scale", kOp);
  qdiff::check_positive(numbers.v_scale, "v_scale", kOp);
  qdiff::check_within(numbers.q_zero_point, 0, 255, "q_zero_point", kOp);
  const double score_scale = numbers.softmax_scale * numbers.q_scale * numbers.k_scale;
  TORCH_CHECK(score_scale <= FLT_MAX, "int_attention: softmax_scale * q_scale * k_scale must be finite in float32, not ",
              score_scale);
}

// The one number that a tensor holds.
at::Scalar number_of(const Tensor& x, const char* what) {
  TORCH_CHECK(x.defined(), "int_attention: a tensor is missing: ", what);
  TORCH_CHECK(x.numel() == 1 && x.layout() == at::kStrided && !x.is_nested() && !x.is_complex() &&
                  !x.is_quantized() && !x.is_meta(),
              "int_attention: ", what, " must hold one real number, not ", x.scalar_type());
  return x.item();
}

int64_t whole_number_of(const Tensor& x, const char* what) {
  const at::Scalar number = number_of(x, what);
  if (!number.isFloatingPoint()) return number.to<int64_t>();
  const double value = number.to<double>();
  TORCH_CHECK(value == std::floor(value) && std::abs(value) < 1e9, "int_attention: ", what, " must be 0..255, not ", value);
  return int64_t(value);
}

Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask,
              const Numbers& numbers, at::ScalarType out_dtype, const qdiff::Quantizer& quantizer) {
  const Tensor queries = with_unit_stride(as_heads(q));
  const Tensor keys = with_unit_stride(as_heads(k));
  const Tensor values = with_unit_stride(as_heads(v));
  const OptionalTensor added = additive_mask(mask, q, k.size(-2));
  const Tensor out = allocate_output(q, out_dtype == at::kDouble ? at::kFloat : out_dtype);

  qdiff::Attention problem = describe(queries, keys, values, added, as_heads(out));
  problem.q_zero_point = static_cast<int32_t>(numbers.q_zero_point);
  problem.score_scale = static_cast<float>(numbers.softmax_scale * numbers.q_scale * numbers.k_scale);
  problem.v_scale = static_cast<float>(numbers.v_scale);
  problem.out_type = type_of(out.scalar_type());
  problem.quantizer = quantizer;
  problem.levels = static_cast<int32_t>((int64_t{1} << numbers.prob_bits) - 1);

  if (out.numel() > 0 && problem.key_len == 0) out.fill_(quantizer.zero_point);
  if (out.numel() > 0 && problem.key_len > 0) execute(problem);
  return out.to(out_dtype);
}

Tensor int_attention(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask,
                     const Tensor& q_scale, const Tensor& q_zero_point, const Tensor& k_scale,
                     const Tensor& v_scale, double softmax_scale, int64_t prob_bits,
                     at::ScalarType out_dtype) {
  check_all(q, k, v, mask, softmax_scale, prob_bits, out_dtype);
  const Numbers numbers{number_of(q_scale, "q_scale").to<double>(), whole_number_of(q_zero_point, "q_zero_point"),
                        number_of(k_scale, "k_scale").to<double>(), number_of(v_scale, "v_scale").to<double>(),
                        softmax_scale, prob_bits};
  check_numbers(numbers);
  if (!takes(q, k, prob_bits)) {
    return reference().call(q, k, v, mask, q_scale, q_zero_point, k_scale, v_scale, softmax_scale, prob_bits,
                            out_dtype);
  }
  return attend(q, k, v, mask, numbers, out_dtype, {});
}

// The same with numbers where the other takes tensors of one element.
Tensor int_attention_numbers(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask,
                             double q_scale, int64_t q_zero_point, double k_scale, double v_scale,
                             double softmax_scale, int64_t prob_bits, at::ScalarType out_dtype, double out_scale,
                             int64_t out_zero_point, int64_t out_low, int64_t out_high) {
  const bool codes = qdiff::is_codes(out_dtype);
  check_all(q, k, v, mask, softmax_scale, prob_bits, codes ? at::kFloat : out_dtype);
  const auto quantizer = codes ? checked_quantizer(out_scale, out_zero_point, out_low, out_high, out_dtype, kOp)
                               : qdiff::Quantizer{1.0f, 0, 0, 0};
  const Numbers numbers{q_scale, q_zero_point, k_scale, v_scale, softmax_scale, prob_bits};
  check_numbers(numbers);
  if (!takes(q, k, prob_bits)) {
    const auto tensor = [](double x) { return at::full({}, x, at::TensorOptions().dtype(at::kFloat)); };
    const Tensor out = reference().call(q, k, v, mask, tensor(q_scale), tensor(double(q_zero_point)).to(at::kLong),
                                        tensor(k_scale), tensor(v_scale), softmax_scale, prob_bits,
                                        codes ? at::kFloat : out_dtype);
    return codes ? act_quantize(out, 0, out_dtype, out_scale, out_zero_point, out_low, out_high) : out;
  }
  return attend(q, k, v, mask, numbers, out_dtype, quantizer);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(qdiff_native, library) {
  library.def("kernel_name() -> str", [] { return std::string(qdiff::kKernels.name); });
}

TORCH_LIBRARY_IMPL(qdiff, CPU, library) {
  library.impl("int_attention_vnni", int_attention);
  library.impl("int_attention_vnni.numbers", int_attention_numbers);
}
