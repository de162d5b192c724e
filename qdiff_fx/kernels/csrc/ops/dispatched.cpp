#include "ops/dispatched.h"

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>

namespace qdiff {
namespace {

namespace detail = torch::stable::detail;




// How the type of an argument is written down.
enum TypeCode : int64_t {
  kTensorType,
  kIntType,
  kFloatType,
  kBoolType,
  kDtypeType,
  kOptionalOf,  // then of what
  kListOf,      // then of what
  kNothing,     // of an optional that is always none: torch passes nothing else between libraries of different releases
};

// One argument, which makes a value of torch's for every call: the call takes it.
class Made {
 public:
  virtual ~Made() = default;
  virtual StableIValue make(const Slots& slots) const = 0;
};

template <typename T>
class MadeItem final : public Made {
 public:
  explicit MadeItem(Reader& reader) : item_(read_item<T>(reader)) {}
  StableIValue make(const Slots& slots) const override { return detail::from(value_of(item_, slots)); }

 private:
  Item<T> item_;
};

std::unique_ptr<Made> read_made(const Integers& types, size_t& at, Reader& reader);

void skip_type(const Integers& types, size_t& at) {
  while (types.at(at) == kOptionalOf || types.at(at) == kListOf) ++at;
  ++at;
}

class MadeOptional final : public Made {
 public:
  MadeOptional(const Integers& types, size_t& at, Reader& reader) {
    if (!reader.next_is_none()) {
      inner_ = read_made(types, at, reader);
      return;
    }
    skip_type(types, at);
  }
  StableIValue make(const Slots& slots) const override {
    return inner_ ? detail::from(new StableIValue(inner_->make(slots))) : detail::from(std::nullopt);
  }

 private:
  std::unique_ptr<Made> inner_;
};

class MadeList final : public Made {
 public:
  MadeList(const Integers& types, size_t& at, Reader& reader) {
    if (const int64_t kind = reader.kind(); kind != kList) Reader::refuse(kind);
    const size_t of = at;
    int64_t count = reader.length();
    skip_type(types, at);
    for (; count > 0; --count) {
      size_t each = of;
      items_.push_back(read_made(types, each, reader));
    }
  }
  StableIValue make(const Slots& slots) const override {
    StableListHandle list = nullptr;
    check_call(torch_new_list_reserve_size(items_.size(), &list), "a list");
    for (const auto& each : items_) check_call(torch_list_push_back(list, each->make(slots)), "a list");
    return detail::from(list);
  }

 private:
  std::vector<std::unique_ptr<Made>> items_;
};

std::unique_ptr<Made> read_made(const Integers& types, size_t& at, Reader& reader) {
  switch (types.at(at++)) {
    case kTensorType: return std::make_unique<MadeItem<Tensor>>(reader);
    case kIntType: return std::make_unique<MadeItem<int64_t>>(reader);
    case kFloatType: return std::make_unique<MadeItem<double>>(reader);
    case kBoolType: return std::make_unique<MadeItem<bool>>(reader);
    case kDtypeType: return std::make_unique<MadeItem<Dtype>>(reader);
    case kOptionalOf: return std::make_unique<MadeOptional>(types, at, reader);
    case kListOf: return std::make_unique<MadeList>(types, at, reader);
    case kNothing: Reader::refuse(kInt);
    default: fail("qdiff: there is no such type of an argument");
  }
}

class DispatchedCall final : public Call {
 public:
  DispatchedCall(const std::string& name, const std::string& overload, const Integers& types, Reader& reader)
      : name_(name), overload_(overload) {
    QDIFF_CHECK(!types.empty(), name, ": one result is expected");
    size_t at = 0;
    while (at + 1 < types.size()) {
      QDIFF_CHECK(!reader.done(), name, ": argument ", arguments_.size() + 1, " is not given");
      arguments_.push_back(read_made(types, at, reader));
    }
    result_ = types.back();
    QDIFF_CHECK(result_ == kTensorType || result_ == kIntType, name, ": returns neither a tensor nor a number");
  }

  Value run(const Slots& slots) const override {
    std::vector<StableIValue> stack(std::max<size_t>(1, arguments_.size()));
    for (size_t i = 0; i < arguments_.size(); ++i) stack[i] = arguments_[i]->make(slots);
    check_call(torch_call_dispatcher(name_.c_str(), overload_.c_str(), stack.data(), TORCH_ABI_VERSION), name_.c_str());
    if (result_ == kIntType) return detail::to<int64_t>(stack[0]);
    return detail::to<Tensor>(stack[0]);
  }

 private:
  std::string name_, overload_;
  std::vector<std::unique_ptr<Made>> arguments_;
  int64_t result_;
};

}  // namespace

std::unique_ptr<Call> dispatched(const std::string& name, const std::string& overload, const Integers& types, Reader& reader) {
  return std::make_unique<DispatchedCall>(name, overload, types, reader);
}

}  // namespace qdiff
