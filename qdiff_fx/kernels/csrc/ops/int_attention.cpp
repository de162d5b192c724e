// qdiff::int_attention_vnni: checks, memory layout, threads.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "core/parallel.h"
#include "core/pool.h"
#include "ops/checks.h"
#include "ops/operators.h"

namespace qdiff {
namespace {

constexpr const char* kOp = "int_attention";

const Kernel& kernel() { return *kernels().attention; }

void check_codes(const Tensor& q, const Tensor& k, const Tensor& v) {
  check_plain(q, kOp), check_plain(k, kOp), check_plain(v, kOp);
  QDIFF_CHECK(dtype_of(q) == Dtype::Byte && dtype_of(k) == Dtype::Char && dtype_of(v) == Dtype::Char,
              "int_attention: q must be uint8, k and v int8, not ", dtype_of(q), ", ", dtype_of(k), ", ", dtype_of(v));
  const Sizes queries = sizes_of(q), keys = sizes_of(k), values = sizes_of(v);
  QDIFF_CHECK(queries.size() >= 2, "int_attention: q needs at least 2 dims (..., L, D), not ", queries.size());
  const bool same_lead = keys.size() == queries.size() && keys.back() == queries.back() &&
                         Sizes(keys.data(), keys.size() - 2) == Sizes(queries.data(), queries.size() - 2);
  QDIFF_CHECK(keys == values && same_lead, "int_attention: shapes must be q (..., L, D), k and v (..., S, D), not ", queries,
              ", ", keys, ", ", values);
}

bool is_float(Dtype dtype) { return is_floats(dtype) || dtype == Dtype::Double; }

// The shape of scores, (..., L, S).
std::vector<int64_t> scores_of(const Tensor& q, const Tensor& k) {
  std::vector<int64_t> scores = sizes_of(q).copy();
  scores.back() = k.size(-2);
  return scores;
}

bool broadcasts(const Sizes& from, const Sizes& to) {
  if (from.size() > to.size()) return false;
  for (size_t i = 1; i <= from.size(); ++i) {
    if (from[from.size() - i] != 1 && from[from.size() - i] != to[to.size() - i]) return false;
  }
  return true;
}

void check_mask(const Tensor& mask, const Sizes& scores) {
  QDIFF_CHECK(dtype_of(mask) == Dtype::Bool || is_float(dtype_of(mask)), "int_attention: mask must be bool or floating, not ",
              dtype_of(mask));
  QDIFF_CHECK(broadcasts(sizes_of(mask), scores), "int_attention: mask ", sizes_of(mask), " does not broadcast to ", scores);
}

// All that can be said without the numbers that tensors hold.
void check_all(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask, double softmax_scale,
               int64_t prob_bits, Dtype out_dtype) {
  check_plain(mask, kOp);
  check_codes(q, k, v);
  if (mask.has_value()) check_mask(*mask, scores_of(q, k));
  check_positive(softmax_scale, "softmax_scale", kOp);
  check_within(prob_bits, 1, 16, "prob_bits", kOp);
  QDIFF_CHECK(is_float(out_dtype), "int_attention: out_dtype must be floating, not ", out_dtype);
}

// (..., T, D) as (batch, heads, T, D).
Tensor as_heads(const Tensor& x) {
  const Sizes sizes = sizes_of(x), strides = strides_of(x);
  switch (sizes.size()) {
    case 4: return x;
    case 3: return viewed(x, {sizes[0], 1, sizes[1], sizes[2]}, {strides[0], 1, strides[1], strides[2]});
    case 2: return viewed(x, {1, 1, sizes[0], sizes[1]}, {1, 1, strides[0], strides[1]});
    default: return as_heads(torch::stable::flatten(x, 0, -3));
  }
}

Tensor with_unit_stride(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.stride(last) == 1 || x.size(last) == 1 ? x : as_contiguous(x);
}

// Without the dims that only repeat one element, so converting it does not materialise the repetition.
Tensor without_repeats(const Tensor& mask) {
  std::vector<int64_t> sizes = sizes_of(mask).copy();
  const Sizes strides = strides_of(mask);
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (strides[dim] == 0) sizes[dim] = std::min<int64_t>(sizes[dim], 1);
  }
  return viewed(mask, sizes, strides);
}

Tensor as_additive(const Tensor& mask) {
  if (dtype_of(mask) != Dtype::Bool) return converted(mask, Dtype::Float);
  const Tensor allowed = as_contiguous(mask);
  const Tensor added = empty(sizes_of(mask), Dtype::Float);
  const auto* from = data_of<uint8_t>(allowed);
  auto* to = static_cast<float*>(added.mutable_data_ptr());
  std::transform(from, from + allowed.numel(), to,
                 [](uint8_t each) { return each ? 0.0f : -std::numeric_limits<float>::infinity(); });
  return added;
}

// Of a shape that it broadcasts to.
Tensor expanded(const Tensor& x, const Sizes& sizes) {
  const Sizes from = sizes_of(x), steps = strides_of(x);
  std::vector<int64_t> strides(sizes.size(), 0);
  for (size_t i = 1; i <= from.size(); ++i) {
    if (from[from.size() - i] != 1) strides[sizes.size() - i] = steps[from.size() - i];
  }
  return viewed(x, sizes, strides);
}

// The mask as float to add, (batch, heads, L, S), unit stride over keys.
OptionalTensor additive_mask(const OptionalTensor& mask, const Tensor& q, const Tensor& k) {
  if (!mask.has_value()) return std::nullopt;
  const Tensor added = as_additive(without_repeats(*mask));
  std::vector<int64_t> rows = sizes_of(added).copy();
  if (rows.empty()) rows.push_back(1);
  rows.back() = k.size(-2);
  return as_heads(expanded(with_unit_stride(expanded(added, rows)), scores_of(q, k)));
}

// Tokens outside heads when q is laid out so: the caller transposes the result back for free.
Tensor allocate_output(const Tensor& q, Dtype dtype) {
  const Sizes sizes = sizes_of(q);
  const bool tokens_outside = sizes.size() == 4 && sizes[1] > 1 && sizes[2] > 1 && q.stride(1) < q.stride(2);
  if (!tokens_outside) return pooled(sizes, dtype);
  const int64_t token = sizes[1] * sizes[3];
  return pooled(sizes, {sizes[2] * token, sizes[3], token, 1}, dtype);
}

void copy_strides(int64_t (&to)[3], const Tensor& x) { std::copy_n(strides_of(x).begin(), 3, to); }

void execute(const Attention& problem) {
  const Plan plan = kernel().plan(problem);
  const Bytes packed(plan.packed_bytes);
  constexpr int64_t kPackGrain = 16;
  parallel_ranges(plan.pack_tasks, kPackGrain,
                  [&](int64_t begin, int64_t end) { kernel().pack(problem, packed.data(), begin, end); });
  // A thread is worth waking for about a hundred microseconds of work.
  constexpr int64_t kMacsPerThread = 8'000'000;
  const int64_t grain = std::max<int64_t>(1, kMacsPerThread / std::max<int64_t>(1, plan.attend_macs));
  parallel_ranges(plan.attend_tasks, grain, [&](int64_t begin, int64_t end) {
    const Bytes scratch(plan.scratch_bytes);
    kernel().attend(problem, packed.data(), scratch.data(), begin, end);
  });
}

bool takes(const Tensor& q, const Tensor& k, int64_t prob_bits) {
  return q.size(-1) <= kernel().max_head_dim && k.size(-2) <= kernel().max_key_len &&
         (int64_t{1} << prob_bits) - 1 <= kernel().max_levels;
}

Attention describe(const Tensor& queries, const Tensor& keys, const Tensor& values, const OptionalTensor& mask,
                   const Tensor& out) {
  Attention problem{};
  problem.q = data_of<uint8_t>(queries);
  problem.k = data_of<int8_t>(keys);
  problem.v = data_of<int8_t>(values);
  problem.mask = mask ? data_of<float>(*mask) : nullptr;
  problem.out = out.mutable_data_ptr();
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

struct Numbers {
  double q_scale;
  int64_t q_zero_point;
  double k_scale, v_scale, softmax_scale;
  int64_t prob_bits;
};

void check_numbers(const Numbers& numbers) {
  check_positive(numbers.q_scale, "q_scale", kOp);
  check_positive(numbers.k_scale, "k_scale", kOp);
  check_positive(numbers.v_scale, "v_scale", kOp);
  check_within(numbers.q_zero_point, 0, 255, "q_zero_point", kOp);
  const double score_scale = numbers.softmax_scale * numbers.q_scale * numbers.k_scale;
  QDIFF_CHECK(score_scale <= FLT_MAX, "int_attention: softmax_scale * q_scale * k_scale must be finite in float32, not ",
              score_scale);
}

bool is_number(Dtype dtype) {
  switch (dtype) {
    case Dtype::Float:
    case Dtype::Half:
    case Dtype::BFloat16:
    case Dtype::Double:
    case Dtype::Bool:
    case Dtype::Byte:
    case Dtype::Char:
    case Dtype::Short:
    case Dtype::Int:
    case Dtype::Long: return true;
    default: return false;
  }
}

// The one number that a tensor holds.
double number_of(const Tensor& x, const char* what) {
  QDIFF_CHECK(x.defined(), "int_attention: a tensor is missing: ", what);
  check_plain(x, kOp);
  QDIFF_CHECK(x.numel() == 1 && is_number(dtype_of(x)), "int_attention: ", what, " must hold one real number, not ", dtype_of(x));
  double number = 0;
  check_call(aoti_torch_item_float64(x.get(), &number), "item");
  return number;
}

int64_t whole_number_of(const Tensor& x, const char* what) {
  const double number = number_of(x, what);
  QDIFF_CHECK(number == std::floor(number) && std::abs(number) < 1e9, "int_attention: ", what, " must be 0..255, not ", number);
  return int64_t(number);
}

Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask, const Numbers& numbers,
              Dtype out_dtype, const Quantizer& quantizer) {
  const Tensor queries = with_unit_stride(as_heads(q));
  const Tensor keys = with_unit_stride(as_heads(k));
  const Tensor values = with_unit_stride(as_heads(v));
  const OptionalTensor added = additive_mask(mask, q, k);
  const Dtype dtype = out_dtype == Dtype::Double ? Dtype::Float : out_dtype;
  const Tensor out = allocate_output(q, dtype);
  const bool of_none = out.numel() == 0;

  Attention problem = describe(queries, keys, values, added, as_heads(out));
  problem.q_zero_point = static_cast<int32_t>(numbers.q_zero_point);
  problem.score_scale = static_cast<float>(numbers.softmax_scale * numbers.q_scale * numbers.k_scale);
  problem.v_scale = static_cast<float>(numbers.v_scale);
  problem.out_type = type_of(dtype);
  problem.quantizer = quantizer;
  problem.levels = static_cast<int32_t>((int64_t{1} << numbers.prob_bits) - 1);

  if (!of_none && problem.key_len == 0) torch::stable::fill_(out, quantizer.zero_point);
  if (!of_none && problem.key_len > 0) execute(problem);
  return converted(out, out_dtype);
}

// The plain-torch operator, for calls no kernel takes.
Tensor call_reference(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask, const Tensor& q_scale,
                      const Tensor& q_zero_point, const Tensor& k_scale, const Tensor& v_scale, double softmax_scale,
                      int64_t prob_bits, Dtype out_dtype) {
  namespace detail = torch::stable::detail;
  std::array<StableIValue, 11> stack{detail::from(q),       detail::from(k),       detail::from(v),           detail::from(mask),      detail::from(q_scale), detail::from(q_zero_point),
                                     detail::from(k_scale), detail::from(v_scale), detail::from(softmax_scale), detail::from(prob_bits), detail::from(out_dtype)};
  check_call(torch_call_dispatcher("qdiff::int_attention", "", stack.data(), TORCH_ABI_VERSION), "qdiff::int_attention");
  return detail::to<Tensor>(stack[0]);
}

// A tensor of no dims.
template <typename T>
Tensor scalar_tensor(T number, Dtype dtype) {
  const Tensor made = empty(Sizes(), dtype);
  *static_cast<T*>(made.mutable_data_ptr()) = number;
  return made;
}

}  // namespace

Tensor int_attention(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask, const Tensor& q_scale,
                     const Tensor& q_zero_point, const Tensor& k_scale, const Tensor& v_scale, double softmax_scale,
                     int64_t prob_bits, Dtype out_dtype) {
  check_all(q, k, v, mask, softmax_scale, prob_bits, out_dtype);
  const Numbers numbers{number_of(q_scale, "q_scale"), whole_number_of(q_zero_point, "q_zero_point"),
                        number_of(k_scale, "k_scale"), number_of(v_scale, "v_scale"), softmax_scale, prob_bits};
  check_numbers(numbers);
  if (!takes(q, k, prob_bits)) {
    return call_reference(q, k, v, mask, q_scale, q_zero_point, k_scale, v_scale, softmax_scale, prob_bits, out_dtype);
  }
  return attend(q, k, v, mask, numbers, out_dtype, {});
}

Tensor int_attention_numbers(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask, double q_scale,
                             int64_t q_zero_point, double k_scale, double v_scale, double softmax_scale, int64_t prob_bits,
                             Dtype out_dtype, double out_scale, int64_t out_zero_point, int64_t out_low, int64_t out_high) {
  const bool codes = is_codes(out_dtype);
  check_all(q, k, v, mask, softmax_scale, prob_bits, codes ? Dtype::Float : out_dtype);
  const auto quantizer =
      codes ? checked_quantizer(out_scale, out_zero_point, out_low, out_high, out_dtype, kOp) : Quantizer{1.0f, 0, 0, 0};
  const Numbers numbers{q_scale, q_zero_point, k_scale, v_scale, softmax_scale, prob_bits};
  check_numbers(numbers);
  if (takes(q, k, prob_bits)) return attend(q, k, v, mask, numbers, out_dtype, quantizer);
  const auto scale = [](double number) { return scalar_tensor(float(number), Dtype::Float); };
  const Tensor out = call_reference(q, k, v, mask, scale(q_scale), scalar_tensor(q_zero_point, Dtype::Long), scale(k_scale),
                                    scale(v_scale), softmax_scale, prob_bits, codes ? Dtype::Float : out_dtype);
  return codes ? act_quantize(out, 0, out_dtype, out_scale, out_zero_point, out_low, out_high) : out;
}

}  // namespace qdiff
