// Arguments of a planned call: written down in whole numbers, read once, and then either constants or slots' values.
//
// What is written comes from a graph, which may have come from a file: a kernel takes for granted that an argument is of its
// type, so that is checked here.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "core/error.h"
#include "ops/tensor.h"

namespace qdiff {

// Whatever an operator takes or returns.
using Value = std::variant<std::monostate, int64_t, double, Tensor>;
using Slots = std::vector<Value>;

inline const Tensor& tensor_in(const Slots& slots, int64_t slot) {
  const auto* found = std::get_if<Tensor>(&slots[size_t(slot)]);
  QDIFF_CHECK(found, "qdiff: slot ", slot, " holds no tensor");
  return *found;
}

template <typename T>
T number_in(const Slots& slots, int64_t slot);

template <>
inline double number_in(const Slots& slots, int64_t slot) {
  const Value& value = slots[size_t(slot)];
  if (const auto* real = std::get_if<double>(&value)) return *real;
  const auto* whole = std::get_if<int64_t>(&value);
  QDIFF_CHECK(whole, "qdiff: slot ", slot, " holds no number");
  return double(*whole);
}

template <>
inline int64_t number_in(const Slots& slots, int64_t slot) {
  if (const auto* whole = std::get_if<int64_t>(&slots[size_t(slot)])) return *whole;
  const double real = number_in<double>(slots, slot);
  constexpr double kExact = int64_t{1} << 53;  // beyond, a double does not hold every whole number
  QDIFF_CHECK(-kExact < real && real < kExact && real == std::trunc(real), "qdiff: ", real, " is no whole number");
  return int64_t(real);
}

template <>
inline bool number_in(const Slots& slots, int64_t slot) {
  return number_in<double>(slots, slot) != 0;
}

// How an argument is written down: one of these, then what it is followed by.
enum Kind : int64_t {
  kNone,
  kSlot,    // the number of the slot whose value it is
  kInt,     // the number itself; of a bool, 0 or 1
  kFloat,   // its place among the floats
  kTensor,  // its place among the tensors
  kDtype,   // the place of a tensor of that dtype
  kList,    // how many elements, then those
};

// What is written about one call, read number by number.
class Reader {
 public:
  Reader(const Integers& code, const Floats& floats, const Tensors& tensors, int64_t slots)
      : code_(code), floats_(floats), tensors_(tensors), slots_(size_t(slots)) {}

  bool done() const { return at_ == code_.size(); }

  int64_t kind() {
    const int64_t found = next();
    QDIFF_CHECK(kNone <= found && found <= kList, "qdiff: there is no such kind of argument");
    return found;
  }

  bool next_is_none() {
    const bool found = !done() && code_[at_] == kNone;
    at_ += found;
    return found;
  }

  // What a kind is followed by.
  int64_t slot() { return below(next(), slots_); }
  int64_t number() { return next(); }
  double real() { return floats_[size_t(below(next(), floats_.size()))]; }
  const Tensor& tensor() { return tensors_[size_t(below(next(), tensors_.size()))]; }
  Dtype dtype() { return dtype_of(tensor()); }

  int64_t length() {
    const int64_t count = next();
    QDIFF_CHECK(0 <= count && count <= int64_t(code_.size()), "qdiff: a list of ", count, " elements is cut off");
    return count;
  }

  [[noreturn]] static void refuse(int64_t kind) {
    fail(kind == kList ? "qdiff: a list where" : "qdiff: another kind of argument than", " the operator takes");
  }

 private:
  int64_t next() { return code_[size_t(below(int64_t(at_++), code_.size()))]; }

  static int64_t below(int64_t index, size_t size) {
    QDIFF_CHECK(0 <= index && index < int64_t(size), "qdiff: an argument is cut off, or refers to nothing");
    return index;
  }

  const Integers& code_;
  const Floats& floats_;
  const Tensors& tensors_;
  size_t slots_, at_ = 0;
};

// An argument, or an element of a list.
template <typename T>
struct Item {
  T constant{};
  int64_t slot = -1;  // whose value it is
};
template <>
struct Item<Tensor> {
  OptionalTensor constant;  // a Tensor of its own would be made by torch
  int64_t slot = -1;
};

template <typename T>
Item<T> read_item(Reader& reader);

template <>
inline Item<Tensor> read_item(Reader& reader) {
  switch (const int64_t kind = reader.kind()) {
    case kSlot: return {std::nullopt, reader.slot()};
    case kTensor: return {reader.tensor()};
    default: Reader::refuse(kind);
  }
}
template <>
inline Item<int64_t> read_item(Reader& reader) {
  switch (const int64_t kind = reader.kind()) {
    case kSlot: return {0, reader.slot()};
    case kInt: return {reader.number()};
    default: Reader::refuse(kind);
  }
}
template <>
inline Item<double> read_item(Reader& reader) {
  switch (const int64_t kind = reader.kind()) {
    case kSlot: return {0, reader.slot()};
    case kInt: return {double(reader.number())};
    case kFloat: return {reader.real()};
    default: Reader::refuse(kind);
  }
}
template <>
inline Item<bool> read_item(Reader& reader) {
  switch (const int64_t kind = reader.kind()) {
    case kInt: return {reader.number() != 0};
    default: Reader::refuse(kind);
  }
}
template <>
inline Item<Dtype> read_item(Reader& reader) {
  switch (const int64_t kind = reader.kind()) {
    case kDtype: return {reader.dtype()};
    default: Reader::refuse(kind);
  }
}

inline const Tensor& value_of(const Item<Tensor>& item, const Slots& slots) {
  return item.slot < 0 ? *item.constant : tensor_in(slots, item.slot);
}
inline Dtype value_of(const Item<Dtype>& item, const Slots&) { return item.constant; }
template <typename T>
T value_of(const Item<T>& item, const Slots& slots) {
  return item.slot < 0 ? item.constant : number_in<T>(slots, item.slot);
}

template <typename T>
std::vector<Item<T>> read_list(Reader& reader) {
  if (const int64_t kind = reader.kind(); kind != kList) Reader::refuse(kind);
  std::vector<Item<T>> items;
  for (int64_t count = reader.length(); count > 0; --count) items.push_back(read_item<T>(reader));
  return items;
}

template <typename T>
std::vector<T> values_of(const std::vector<Item<T>>& items, const Slots& slots) {
  std::vector<T> values;
  values.reserve(items.size());
  for (const Item<T>& each : items) values.push_back(value_of(each, slots));
  return values;
}

}  // namespace qdiff
