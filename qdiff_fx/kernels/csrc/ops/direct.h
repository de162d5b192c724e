// Planned calls of C++ functions, past torch's dispatcher: constants are made once, and passed as they are.
#pragma once

#include <memory>
#include <tuple>
#include <type_traits>

#include "ops/arguments.h"

namespace qdiff {

// One call of a plan.
class Call {
 public:
  virtual ~Call() = default;
  virtual Value run(const Slots& slots) const = 0;
};

// A value that is somebody else's, or made for one call.
template <typename T>
class Held {
 public:
  explicit Held(const T& constant) : at_(&constant) {}
  explicit Held(T&& made) : made_(std::move(made)), at_(&*made_) {}
  Held(const Held&) = delete;
  operator const T&() const { return *at_; }

 private:
  std::optional<T> made_;
  const T* at_;
};

// An argument of a function, by its type.
template <typename T>
class Argument {
 public:
  explicit Argument(Reader& reader) : item_(read_item<T>(reader)) {}
  auto value(const Slots& slots) const -> decltype(value_of(std::declval<const Item<T>&>(), slots)) {
    return value_of(item_, slots);
  }

 private:
  Item<T> item_;
};

template <>
class Argument<OptionalTensor> {
 public:
  explicit Argument(Reader& reader) {
    if (!reader.next_is_none()) item_ = read_item<Tensor>(reader);
  }
  Held<OptionalTensor> value(const Slots& slots) const {
    if (item_.slot < 0) return Held<OptionalTensor>(item_.constant);
    return Held<OptionalTensor>(OptionalTensor(tensor_in(slots, item_.slot)));
  }

 private:
  Item<Tensor> item_;
};

template <typename T>
class Argument<std::vector<T>> {
 public:
  explicit Argument(Reader& reader) : items_(read_list<T>(reader)) {
    for (const Item<T>& each : items_) varies_ = varies_ || each.slot >= 0;
    if (!varies_) constant_ = values_of(items_, {});
  }
  Held<std::vector<T>> value(const Slots& slots) const {
    return varies_ ? Held<std::vector<T>>(values_of(items_, slots)) : Held<std::vector<T>>(constant_);
  }

 private:
  std::vector<Item<T>> items_;
  std::vector<T> constant_;
  bool varies_ = false;
};

template <auto function, typename Result, typename... Types>
class DirectCall final : public Call {
 public:
  explicit DirectCall(Reader& reader) : arguments_{Argument<std::decay_t<Types>>(reader)...} {}

  Value run(const Slots& slots) const override {
    return std::apply([&](const auto&... each) -> Value { return function(each.value(slots)...); }, arguments_);
  }

 private:
  std::tuple<Argument<std::decay_t<Types>>...> arguments_;
};

template <auto function, typename Result, typename... Types>
std::unique_ptr<Call> make_direct(Result (*)(Types...), Reader& reader) {
  return std::make_unique<DirectCall<function, Result, Types...>>(reader);
}

// Reads the arguments of a function; what is left over is somebody else's business.
template <auto function>
std::unique_ptr<Call> direct(Reader& reader) {
  return make_direct<function>(function, reader);
}

}  // namespace qdiff
