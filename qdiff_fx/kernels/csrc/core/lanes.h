// Sixteen lanes where a register holds fewer: several registers side by side. (The compiler's own vectors, where they are
// longer than a register, live in memory, and every operation on them loads and stores.) Included where `kRegisterBytes` and
// QDIFF_INLINE are known.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace qdiff {
namespace {

template <typename T>
struct Lanes {
  typedef T Part __attribute__((vector_size(kRegisterBytes)));
  static constexpr int kParts = 16 * int(sizeof(T)) / kRegisterBytes;

  Part at[kParts];

  Lanes() = default;
  // Part by part: copies of the whole are made in pieces that registers do not load back at once.
  QDIFF_INLINE Lanes(const Lanes& x) { *this = x; }
  QDIFF_INLINE Lanes& operator=(const Lanes& x) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) at[i] = x.at[i];
    return *this;
  }
  // The same bits.
  template <typename U, typename = std::enable_if_t<sizeof(U) == sizeof(T)>>
  QDIFF_INLINE explicit Lanes(const Lanes<U>& x) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) at[i] = Part(x.at[i]);
  }

  QDIFF_INLINE Lanes& operator+=(const Lanes& x) { return *this = *this + x; }
};

// Each part of the result from those of x.
template <typename T, typename U, typename Make>
QDIFF_INLINE Lanes<T> by_parts(const Lanes<U>& x, const Make& make) {
  Lanes<T> out;
#pragma GCC unroll 4
  for (int i = 0; i < Lanes<T>::kParts; ++i) out.at[i] = make(x.at[i]);
  return out;
}

template <typename T, typename U, typename Make>
QDIFF_INLINE Lanes<T> by_parts(const Lanes<U>& x, const Lanes<U>& y, const Make& make) {
  Lanes<T> out;
#pragma GCC unroll 4
  for (int i = 0; i < Lanes<T>::kParts; ++i) out.at[i] = make(x.at[i], y.at[i]);
  return out;
}

template <typename T>
QDIFF_INLINE Lanes<T> all_of(T x) {
  return by_parts<T>(Lanes<T>{}, [&](const auto& part) { return part + x; });
}

// Of two vectors, or of a vector and a number.
#define QDIFF_OPERATOR(op)                                                                                   \
  template <typename T>                                                                                      \
  QDIFF_INLINE Lanes<T> operator op(const Lanes<T>& x, const Lanes<T>& y) {                                  \
    return by_parts<T>(x, y, [](const auto& a, const auto& b) { return a op b; });                           \
  }                                                                                                          \
  template <typename T>                                                                                      \
  QDIFF_INLINE Lanes<T> operator op(const Lanes<T>& x, std::type_identity_t<T> y) {                          \
    return by_parts<T>(x, [&](const auto& a) { return a op y; });                                            \
  }                                                                                                          \
  template <typename T>                                                                                      \
  QDIFF_INLINE Lanes<T> operator op(std::type_identity_t<T> x, const Lanes<T>& y) {                          \
    return by_parts<T>(y, [&](const auto& b) { return x op b; });                                            \
  }
QDIFF_OPERATOR(+)
QDIFF_OPERATOR(-)
QDIFF_OPERATOR(*)
QDIFF_OPERATOR(/)
QDIFF_OPERATOR(&)
QDIFF_OPERATOR(|)
QDIFF_OPERATOR(^)
#undef QDIFF_OPERATOR

// All bits where it holds.
#define QDIFF_COMPARISON(op)                                                                                 \
  template <typename T>                                                                                      \
  QDIFF_INLINE Lanes<int32_t> operator op(const Lanes<T>& x, const Lanes<T>& y) {                            \
    return by_parts<int32_t>(x, y, [](const auto& a, const auto& b) { return a op b; });                     \
  }                                                                                                          \
  template <typename T>                                                                                      \
  QDIFF_INLINE Lanes<int32_t> operator op(const Lanes<T>& x, std::type_identity_t<T> y) {                    \
    return by_parts<int32_t>(x, [&](const auto& a) { return a op y; });                                      \
  }
QDIFF_COMPARISON(<)
QDIFF_COMPARISON(>)
QDIFF_COMPARISON(>=)
QDIFF_COMPARISON(!=)
#undef QDIFF_COMPARISON

template <typename T>
QDIFF_INLINE Lanes<T> operator-(const Lanes<T>& x) {
  return by_parts<T>(x, [](const auto& a) { return -a; });
}

template <typename T>
QDIFF_INLINE Lanes<T> operator~(const Lanes<T>& x) {
  return by_parts<T>(x, [](const auto& a) { return ~a; });
}

template <typename T>
QDIFF_INLINE Lanes<T> operator<<(const Lanes<T>& x, int bits) {
  return by_parts<T>(x, [&](const auto& a) { return a << bits; });
}

template <typename T>
QDIFF_INLINE Lanes<T> operator>>(const Lanes<T>& x, int bits) {
  return by_parts<T>(x, [&](const auto& a) { return a >> bits; });
}

template <typename V>
QDIFF_INLINE V load_raw(const void* from) {
  V value;
  if constexpr (requires { value.at; }) {
#pragma GCC unroll 4
    for (int i = 0; i < V::kParts; ++i) {
      std::memcpy(&value.at[i], static_cast<const char*>(from) + i * kRegisterBytes, kRegisterBytes);
    }
  } else {
    std::memcpy(&value, from, sizeof(V));
  }
  return value;
}

template <typename V>
QDIFF_INLINE void store_raw(void* to, const V& value) {
  if constexpr (requires { value.at; }) {
#pragma GCC unroll 4
    for (int i = 0; i < V::kParts; ++i) {
      std::memcpy(static_cast<char*>(to) + i * kRegisterBytes, &value.at[i], kRegisterBytes);
    }
  } else {
    std::memcpy(to, &value, sizeof(V));
  }
}

using Floats = Lanes<float>;
using Ints = Lanes<int32_t>;
using Words = Lanes<uint32_t>;
using Halves = Lanes<uint16_t>;
typedef uint8_t Bytes __attribute__((vector_size(16)));

QDIFF_INLINE Floats splat(float x) { return all_of(x); }

QDIFF_INLINE Ints lane_numbers() {
  constexpr int32_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load_raw<Ints>(numbers);
}

QDIFF_INLINE Floats to_floats(const Ints& x) {
  return by_parts<float>(x, [](const auto& a) { return __builtin_convertvector(a, Floats::Part); });
}

}  // namespace
}  // namespace qdiff
