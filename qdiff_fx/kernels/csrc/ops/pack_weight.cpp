// Weights, once and for all, as the layers read them.

#include <algorithm>
#include <cstdlib>

#include "core/parallel.h"
#include "ops/checks.h"
#include "ops/operators.h"

namespace qdiff {
namespace {

// That codes have so many bits.
void check_codes(const int8_t* code, int64_t count, int64_t bits) {
  int8_t least = 0, most = 0;
  for (int64_t i = 0; i < count; ++i) least = std::min(least, code[i]), most = std::max(most, code[i]);
  const int limit = 1 << (bits - 1);
  QDIFF_CHECK(-limit <= least && most < limit, "pack_weight: codes of ", bits, " bits are ", -limit, " to ", limit - 1,
              ", these are not");
}

// That no sum of (code - zero point) * weight, the first factor of at most 255, exceeds 32 bits.
void check_sums(const int8_t* code, int64_t outputs, int64_t inputs) {
  if (inputs * 128 <= kMostWeights) return;
  for (int64_t o = 0; o < outputs; ++o) {
    int64_t sum = 0;
    for (int64_t i = 0; i < inputs; ++i, ++code) sum += std::abs(int32_t(*code));
    QDIFF_CHECK(sum <= kMostWeights, "pack_weight: its ", inputs, " weights per output channel can add up to 255 * ", sum,
                ", more than 32 bits hold");
  }
}

}  // namespace

std::tuple<Tensor, Tensor> packed_weight(const Tensor& codes, int64_t bits) {
  check_plain(codes, "pack_weight");
  QDIFF_CHECK(2 <= bits && bits <= 8, "pack_weight: weights have 2 to 8 bits, not ", bits);
  QDIFF_CHECK(dtype_of(codes) == Dtype::Char && codes.dim() >= 2 && codes.dim() <= 4 && codes.numel() > 0,
              "pack_weight: expected int8 codes (out, in), (out, in, w) or (out, in, h, w), not ", dtype_of(codes), " ",
              sizes_of(codes));
  const Tensor dense = as_contiguous(codes);
  const int8_t* data = data_of<int8_t>(dense);
  const int64_t out = dense.size(0), in = dense.size(1), taps = dense.numel() / (out * in);
  check_codes(data, dense.numel(), bits);
  check_sums(data, out, in * taps);
  const int64_t strides[3] = {in * taps, taps, 1};
  const bool nibbles = bits <= 4;
  // Of one input channel a weight grows by 4, of one output channel by 16.
  const int64_t bytes = taps * ceil_div(in, 4) * quad_bytes(out, nibbles);
  const Tensor packed = empty({bytes}, nibbles ? Dtype::Byte : Dtype::Char);
  const Tensor sums = empty({packed_channels(out)}, Dtype::Int);
  auto* to = static_cast<int8_t*>(packed.mutable_data_ptr());
  auto* to_sums = static_cast<int32_t*>(sums.mutable_data_ptr());
  parallel_ranges(ceil_div(out, kBlockChannels), 1, [&](int64_t begin, int64_t end) {
    pack_weight(data, out, in, taps, strides, nibbles, to, to_sums, begin, end);
  });
  return {packed, sums};
}

}  // namespace qdiff
