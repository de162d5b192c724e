// Activations and quantizers of rows of numbers, one pass.
#pragma once

#include <algorithm>

#include "core/activations.h"

namespace qdiff {
namespace {

// What N stretches of a row, from `c` on, become.
template <Activation A, int N, typename Count>
QDIFF_INLINE Group<N> pointwise_values(const Pointwise& p, const Input& in, int64_t at, Count count) {
  const Group<N> x = each<N>([&](int i) { return in.read(at + i * kLanes, count); });
  if constexpr (A != Activation::geglu) {
    return activate<A>(x);
  } else {
    return x * gelu(each<N>([&](int i) { return in.read(at + p.channels + i * kLanes, count); }));
  }
}

template <Activation A, typename Out>
void pointwise_rows(const Pointwise& p, int64_t begin, int64_t end, const Out& out) {
  const Input in{p.in, p.type};
  constexpr int64_t kTogether = kGroup * kLanes;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t from = row * p.in_stride, to = row * p.out_stride;
    int64_t c = 0;
    for (; c + kTogether <= p.channels; c += kTogether) {
      const Group<kGroup> y = pointwise_values<A, kGroup>(p, in, from + c, all_lanes());
      for (int i = 0; i < kGroup; ++i) out.write(to + c + i * kLanes, y.at[i], all_lanes());
    }
    each_stretch(p.channels - c, [&](int64_t rest, auto count) {
      out.write(to + c + rest, pointwise_values<A, 1>(p, in, from + c + rest, count).at[0], count);
    });
  }
}

template <Activation A>
void pointwise_rows(const Pointwise& p, int64_t begin, int64_t end) {
  if (p.of_rest) return pointwise_rows<A>(p, begin, end, RestOutput(p.out, p.quantizer, p.rest));
  with_output(p.out, p.out_type, p.quantizer, [&](const auto& out) { pointwise_rows<A>(p, begin, end, out); });
}

void pointwise(const Pointwise& p, Tasks& tasks) {
  int64_t begin, end;
  while (tasks.take(begin, end)) {
    switch (p.activation) {
      case Activation::silu: pointwise_rows<Activation::silu>(p, begin, end); break;
      case Activation::gelu: pointwise_rows<Activation::gelu>(p, begin, end); break;
      case Activation::gelu_tanh: pointwise_rows<Activation::gelu_tanh>(p, begin, end); break;
      case Activation::geglu: pointwise_rows<Activation::geglu>(p, begin, end); break;
      case Activation::relu: pointwise_rows<Activation::relu>(p, begin, end); break;
      default: pointwise_rows<Activation::none>(p, begin, end);
    }
  }
}

}  // namespace
}  // namespace qdiff
