// Activations and quantizers of rows of numbers, one pass.
#pragma once

#include <algorithm>

#include "vec.h"

namespace qdiff {
namespace {

template <typename Value>
QDIFF_INLINE void each_row(const Pointwise& p, int64_t begin, int64_t end, const Value& value) {
  with_output(p.out, p.out_type, p.quantizer, [&](const auto& out) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t c = 0; c < p.channels; c += kLanes) {
        const int64_t count = std::min(kLanes, p.channels - c);
        out.write(row * p.out_stride + c, value(row * p.in_stride + c, count), count);
      }
    }
  });
}

void pointwise_rows(const Pointwise& p, int64_t begin, int64_t end) {
  const Reader reader{p.in, p.type};
  switch (p.activation) {
    case Activation::silu:
      return each_row(p, begin, end, [&](int64_t at, int64_t count) { return silu(reader.read(at, count)); });
    case Activation::gelu:
      return each_row(p, begin, end, [&](int64_t at, int64_t count) { return gelu(reader.read(at, count)); });
    case Activation::gelu_tanh:
      return each_row(p, begin, end, [&](int64_t at, int64_t count) { return gelu_tanh(reader.read(at, count)); });
    case Activation::geglu:
      return each_row(p, begin, end, [&](int64_t at, int64_t count) {
        return reader.read(at, count) * gelu(reader.read(at + p.channels, count));
      });
    default:
      return each_row(p, begin, end, [&](int64_t at, int64_t count) { return reader.read(at, count); });
  }
}

void pointwise(const Pointwise& p, Tasks& tasks) {
  int64_t begin, end;
  while (tasks.take(begin, end)) pointwise_rows(p, begin, end);
}

}  // namespace
}  // namespace qdiff
