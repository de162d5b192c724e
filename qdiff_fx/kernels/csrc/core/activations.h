// Activations of several vectors at once: each is a long chain of operations that wait for one another, and the processor
// looks ahead by no more than a few such chains.
#pragma once

#include <utility>

#include "core/vec.h"

namespace qdiff {
namespace {

template <int N>
struct Group {
  Floats at[N];
};

#if defined(__AVX512F__)
constexpr int kGroup = 6;
#elif defined(__AVX2__)
constexpr int kGroup = 2;
#else
constexpr int kGroup = 1;  // a vector is several registers as it is
#endif

template <typename Value, int... I>
QDIFF_INLINE Group<sizeof...(I)> each_of(const Value& value, std::integer_sequence<int, I...>) {
  return {{value(I)...}};
}

template <int N, typename Value>
QDIFF_INLINE Group<N> each(const Value& value) {
  return each_of(value, std::make_integer_sequence<int, N>());
}

template <int N>
QDIFF_INLINE Group<N> operator*(const Group<N>& x, const Group<N>& y) {
  return each<N>([&](int i) { return x.at[i] * y.at[i]; });
}

template <int N>
QDIFF_INLINE Group<N> operator*(float x, const Group<N>& y) {
  return each<N>([&](int i) { return x * y.at[i]; });
}

template <int N>
QDIFF_INLINE Group<N> operator+(float x, const Group<N>& y) {
  return each<N>([&](int i) { return x + y.at[i]; });
}

template <int N>
QDIFF_INLINE Group<N> multiply_add(const Group<N>& x, const Group<N>& y, float z) {
  return each<N>([&](int i) { return multiply_add(x.at[i], y.at[i], splat(z)); });
}

template <int N>
QDIFF_INLINE Group<N> at_most(const Group<N>& x, float high) {
  return each<N>([&](int i) { return at_most(x.at[i], high); });
}

template <int N>
QDIFF_INLINE Group<N> reciprocal(const Group<N>& x) {
  return each<N>([&](int i) { return reciprocal(x.at[i]); });
}

// 2^x to 2e-7, at most 2^126.
template <int N>
QDIFF_INLINE Group<N> exponential2(const Group<N>& x) {
#if defined(__AVX512F__)
  // 2^floor(x) times a minimax polynomial of the fraction.
  const Group<N> most = at_most(x, 126.0f);
  const Group<N> f = each<N>([&](int i) {
    return Floats(_mm512_reduce_ps(__m512(most.at[i]), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
  });
  Group<N> p = multiply_add(each<N>([](int) { return splat(1.87757669e-3f); }), f, 8.98934063e-3f);
  p = multiply_add(p, f, 5.58263175e-2f);
  p = multiply_add(p, f, 2.40153611e-1f);
  p = multiply_add(p, f, 6.93153083e-1f);
  p = multiply_add(p, f, 9.99999940e-1f);
  return each<N>([&](int i) { return Floats(_mm512_scalef_ps(__m512(p.at[i]), __m512(most.at[i]))); });
#else
  const Group<N> most = each<N>([&](int i) { return at_most(at_least(x.at[i], -126.0f), 126.0f); });
  Ints n[N];
  for (int i = 0; i < N; ++i) n[i] = nearest(most.at[i]);
  const Group<N> f = each<N>([&](int i) { return most.at[i] - to_floats(n[i]); });
  // Minimax for |f| <= 0.5 (Cephes, exp2f).
  Group<N> p = multiply_add(each<N>([](int) { return splat(1.535336188319500e-4f); }), f, 1.339887440266574e-3f);
  p = multiply_add(p, f, 9.618437357674640e-3f);
  p = multiply_add(p, f, 5.550332471162809e-2f);
  p = multiply_add(p, f, 2.402264791363012e-1f);
  p = multiply_add(p, f, 6.931472028550421e-1f);
  p = multiply_add(p, f, 1.0f);
  return each<N>([&](int i) { return Floats(Ints(p.at[i]) + (n[i] << 23)); });
#endif
}

QDIFF_INLINE Floats exponential2(const Floats& x) { return exponential2(Group<1>{{x}}).at[0]; }

constexpr float kLog2E = 1.44269504f;

template <int N>
QDIFF_INLINE Group<N> silu(const Group<N>& x) {
  return x * reciprocal(1.0f + exponential2(-kLog2E * x));
}

// Abramowitz and Stegun 7.1.26, |error| <= 1.5e-7.
template <int N>
QDIFF_INLINE Group<N> error_function(const Group<N>& x) {
  const Group<N> magnitude = each<N>([&](int i) { return Floats(Ints(x.at[i]) & 0x7fffffff); });
  const Group<N> t = reciprocal(1.0f + 0.3275911f * at_most(magnitude, 1e18f));
  Group<N> p = multiply_add(each<N>([](int) { return splat(1.061405429f); }), t, -1.453152027f);
  p = multiply_add(p, t, 1.421413741f);
  p = multiply_add(p, t, -0.284496736f);
  p = multiply_add(p, t, 0.254829592f);
  const Group<N> rest = p * t * exponential2(-kLog2E * magnitude * magnitude);
  return each<N>([&](int i) { return Floats(Ints(1.0f - rest.at[i]) | (Ints(x.at[i]) & int32_t(0x80000000))); });
}

template <int N>
QDIFF_INLINE Group<N> gelu(const Group<N>& x) {
  return 0.5f * x * (1.0f + error_function(0.70710678f * x));
}

template <int N>
QDIFF_INLINE Group<N> gelu_tanh(const Group<N>& x) {
  // 0.5 (1 + tanh u) = 1 / (1 + exp(-2 u))
  return x * reciprocal(1.0f + exponential2(-2.30220819f * (x * (1.0f + 0.044715f * x * x))));
}

// Of NaN it is NaN, and of -0 it is -0, with every instruction set.
template <int N>
QDIFF_INLINE Group<N> relu(const Group<N>& x) {
  return each<N>([&](int i) { return Floats(Ints(x.at[i]) & ~Ints(x.at[i] < 0.0f)); });
}

template <Activation A, int N>
QDIFF_INLINE Group<N> activate(const Group<N>& x) {
  if constexpr (A == Activation::silu) return silu(x);
  if constexpr (A == Activation::gelu) return gelu(x);
  if constexpr (A == Activation::gelu_tanh) return gelu_tanh(x);
  if constexpr (A == Activation::relu) return relu(x);
  return x;
}

}  // namespace
}  // namespace qdiff
