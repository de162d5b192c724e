// A run of operators called one after another: Python's share of every call would be felt at small batches.

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/custom_class.h>

#include <string>
#include <utility>
#include <vector>

namespace {

using at::Tensor;
using c10::IValue;

// How an argument is written down, in whole numbers: one of these, then what it is followed by.
constexpr int64_t kMostSlots = 1 << 24;

enum Kind : int64_t {
  kNone,
  kSlot,    // the number of the slot whose value it is
  kInt,     // the number itself; of a bool, 0 or 1
  kFloat,   // its place among the floats
  kTensor,  // its place among the tensors
  kDtype,   // the place of a tensor of that dtype
  kList,    // how many elements, then those
};

struct Argument {
  IValue constant;
  int64_t slot = -1;             // whose value it is
  std::vector<Argument> items;   // of a list that has slots in it
  c10::TypePtr item_type;

  bool varies() const { return slot >= 0 || item_type; }
};

struct Call {
  c10::OperatorHandle op;
  std::vector<Argument> arguments;
  int64_t result;
  std::vector<int64_t> dead;  // slots nobody reads after this call
};

// Reads arguments one by one.
class Reader {
 public:
  Reader(const std::vector<int64_t>& code, const std::vector<double>& floats, const std::vector<Tensor>& tensors,
         int64_t slots)
      : code_(code), floats_(floats), tensors_(tensors), slots_(slots) {}

  bool done() const { return at_ == code_.size(); }

  // real_type: which tells dtypes, layouts and the like from the whole numbers they are written as.
  Argument argument(const c10::TypePtr& type, const c10::TypePtr& real_type) {
    if (const auto optional = type->cast<c10::OptionalType>()) {
      if (next_is(kNone)) return {};
      const auto real = real_type->cast<c10::OptionalType>();
      return argument(optional->getElementType(), real ? real->getElementType() : real_type);
    }
    Argument read;
    const int64_t kind = next();
    check_fits(kind, type->kind(), real_type->kind());
    switch (kind) {
      case kSlot: read.slot = below(next(), slots_); break;
      case kInt: {
        const int64_t number = next();
        const bool is_bool = type->kind() == c10::TypeKind::BoolType, is_float = type->kind() == c10::TypeKind::FloatType;
        read.constant = is_bool ? IValue(number != 0) : is_float ? IValue(double(number)) : IValue(number);
        break;
      }
      case kFloat: read.constant = floats_[below(next(), floats_.size())]; break;
      case kTensor: read.constant = tensors_[below(next(), tensors_.size())]; break;
      case kDtype: read.constant = int64_t(tensors_[below(next(), tensors_.size())].scalar_type()); break;
      case kList: read_list(read, type); break;
      default: TORCH_CHECK(false, "qdiff: there is no such kind of argument");
    }
    return read;
  }

 private:
  // A kernel takes for granted that an argument is of its type.
  static void check_fits(int64_t kind, c10::TypeKind type, c10::TypeKind real_type) {
    using Is = c10::TypeKind;
    const bool number = type == Is::NumberType, whole = type == Is::IntType || type == Is::SymIntType;
    const bool as_it_is = type == real_type || real_type == Is::SymIntType;
    bool fits = true;
    switch (kind) {
      case kInt: fits = (whole && as_it_is) || number || type == Is::FloatType || type == Is::BoolType; break;
      case kFloat: fits = number || type == Is::FloatType; break;
      case kTensor: fits = type == Is::TensorType; break;
      case kDtype: fits = real_type == Is::ScalarTypeType; break;
      case kList: fits = type == Is::ListType; break;
      case kNone: fits = false; break;
    }
    TORCH_CHECK(fits, kind == kList ? "qdiff: a list where" : "qdiff: another kind of argument than", " the operator takes");
  }

  bool next_is(int64_t kind) {
    const bool found = !done() && code_[at_] == kind;
    at_ += found;
    return found;
  }

  void read_list(Argument& read, const c10::TypePtr& type) {
    const auto list = type->cast<c10::ListType>();
    TORCH_CHECK(list, "qdiff: a list where the operator takes ", type->str());
    c10::TypePtr item = list->getElementType();
    if (item->kind() == c10::TypeKind::SymIntType) item = c10::IntType::get();  // sizes are numbers when it runs
    bool varies = false;
    int64_t count = next();
    TORCH_CHECK(0 <= count && count <= int64_t(code_.size()), "qdiff: a list of ", count, " elements is cut off");
    for (; count > 0; --count) {
      read.items.push_back(argument(item, item));
      varies = varies || read.items.back().varies();
    }
    if (varies) {
      read.item_type = item;
      return;
    }
    c10::impl::GenericList values(item);
    for (const Argument& each : read.items) values.push_back(each.constant);
    read.constant = values;
    read.items.clear();
  }

  int64_t next() { return code_[below(int64_t(at_++), code_.size())]; }

  static int64_t below(int64_t index, size_t size) {
    TORCH_CHECK(0 <= index && index < int64_t(size), "qdiff: an argument is cut off, or refers to nothing");
    return index;
  }

  const std::vector<int64_t>& code_;
  const std::vector<double>& floats_;
  const std::vector<Tensor>& tensors_;
  size_t slots_, at_ = 0;
};

IValue value_of(const Argument& argument, const std::vector<IValue>& slots) {
  if (argument.slot >= 0) return slots[argument.slot];
  if (!argument.item_type) return argument.constant;
  c10::impl::GenericList list(argument.item_type);
  list.reserve(argument.items.size());
  for (const Argument& each : argument.items) list.push_back(value_of(each, slots));
  return list;
}

class Plan : public torch::CustomClassHolder {
 public:
  explicit Plan(int64_t slots) : slots_(slots) { 
    TORCH_CHECK(0 <= slots && slots <= kMostSlots, "qdiff: a plan with ", slots, " slots");
  }

  // Arguments in the order of the operator's schema; those that are missing take their defaults.
  void add(const std::string& name, const std::string& overload, std::vector<int64_t> code, std::vector<double> floats,
           std::vector<Tensor> tensors, int64_t result, std::vector<int64_t> dead) {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str());
    check_slots({result});
    check_slots(dead);
    Call call{op, {}, result, std::move(dead)};
    Reader reader(code, floats, tensors, slots_);
    for (const auto& argument : op.schema().arguments()) {
      if (!reader.done()) {
        call.arguments.push_back(reader.argument(argument.type(), argument.real_type()));
        continue;
      }
      TORCH_CHECK(argument.default_value(), name, ": no ", argument.name(), " is given");
      Argument missing;
      missing.constant = *argument.default_value();
      call.arguments.push_back(std::move(missing));
    }
    TORCH_CHECK(reader.done(), name, ": more arguments than it takes");
    TORCH_CHECK(op.schema().returns().size() == 1, name, ": one result is expected");
    calls_.push_back(std::move(call));
  }

  // The inputs are the first slots; returns the slots asked for.
  c10::impl::GenericList run(const c10::impl::GenericList& inputs, const std::vector<int64_t>& results) {
    TORCH_CHECK(int64_t(inputs.size()) <= slots_, "qdiff: more inputs than slots");
    check_slots(results);
    std::vector<IValue> slots(inputs.begin(), inputs.end());
    slots.resize(slots_);
    torch::jit::Stack stack;
    for (const Call& call : calls_) {
      for (const Argument& each : call.arguments) stack.push_back(value_of(each, slots));
      call.op.callBoxed(stack);
      slots[call.result] = std::move(stack.back());
      stack.clear();
      for (const int64_t dead : call.dead) slots[dead] = IValue();
    }
    c10::impl::GenericList found(c10::AnyType::get());
    for (const int64_t each : results) found.push_back(slots[each]);
    return found;
  }

 private:
  void check_slots(const std::vector<int64_t>& slots) const {
    for (const int64_t slot : slots) TORCH_CHECK(0 <= slot && slot < slots_, "qdiff: there is no slot ", slot);
  }

  int64_t slots_;
  std::vector<Call> calls_;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(qdiff_native, library) {
  library.class_<Plan>("Plan").def(torch::init<int64_t>()).def("add", &Plan::add).def("run", &Plan::run);
}
