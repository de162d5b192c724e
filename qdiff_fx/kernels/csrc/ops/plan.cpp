#include "ops/plan.h"

#include <map>
#include <memory>
#include <mutex>

#include "ops/aten.h"
#include "ops/direct.h"
#include "ops/dispatched.h"
#include "ops/operators.h"

namespace qdiff {
namespace {

constexpr int64_t kMostSlots = 1 << 24;

using Bind = std::unique_ptr<Call> (*)(Reader&);

// Operators that are called as the C++ functions they are, by name and overload.
const std::map<std::string, Bind>& bound_directly() {
  static const std::map<std::string, Bind> known = {
      {"qdiff::int_conv.", direct<&int_conv>},
      {"qdiff::int_depthwise_conv.", direct<&int_depthwise_conv>},
      {"qdiff::int_linear.", direct<&int_linear>},
      {"qdiff::group_norm_act.", direct<&group_norm_act>},
      {"qdiff::layer_norm_act.", direct<&layer_norm_act>},
      {"qdiff::act_quantize.", direct<&act_quantize>},
      {"qdiff::act_quantize_rest.", direct<&act_quantize_rest>},
      {"qdiff::int_attention_vnni.numbers", direct<&int_attention_numbers>},
      {"aten::reshape.", direct<&reshape>},
      {"aten::permute.", direct<&permute>},
      {"aten::unsqueeze.", direct<&unsqueeze>},
      {"aten::sym_size.int", direct<&size>},
      {"aten::add.Tensor", direct<&add>},
  };
  return known;
}

class Program {
 public:
  explicit Program(int64_t slots) : slots_(slots) {
    QDIFF_CHECK(0 <= slots && slots <= kMostSlots, "qdiff: a plan with ", slots, " slots");
  }

  void add(const std::string& name, const std::string& overload, const Integers& types, Reader& reader, int64_t result,
           const Integers& dead) {
    check_slots({result});
    check_slots(dead);
    const auto found = bound_directly().find(name + "." + overload);
    Step step{found == bound_directly().end() ? dispatched(name, overload, types, reader) : found->second(reader), result, dead};
    QDIFF_CHECK(reader.done(), name, ": more arguments than it takes");
    steps_.push_back(std::move(step));
  }

  std::tuple<Tensors, Integers> run(const Tensors& tensors, const Floats& numbers, const Integers& tensor_results,
                                    const Integers& number_results) const {
    QDIFF_CHECK(int64_t(tensors.size() + numbers.size()) <= slots_, "qdiff: more inputs than slots");
    check_slots(tensor_results);
    check_slots(number_results);
    Slots slots;
    slots.reserve(size_t(slots_));
    for (const Tensor& each : tensors) {
      QDIFF_CHECK(each.defined() && each.is_cpu(), "qdiff: a plan takes tensors on the cpu");
      slots.emplace_back(each);
    }
    for (const double each : numbers) slots.emplace_back(each);
    slots.resize(size_t(slots_));
    for (const Step& step : steps_) {
      slots[size_t(step.result)] = step.call->run(slots);
      for (const int64_t dead : step.dead) slots[size_t(dead)] = {};
    }
    std::tuple<Tensors, Integers> found;
    for (const int64_t each : tensor_results) std::get<0>(found).push_back(tensor_in(slots, each));
    for (const int64_t each : number_results) std::get<1>(found).push_back(number_in<int64_t>(slots, each));
    return found;
  }

  int64_t slots() const { return slots_; }

 private:
  struct Step {
    std::unique_ptr<Call> call;
    int64_t result;
    Integers dead;  // slots nobody reads after this call
  };

  void check_slots(const Integers& slots) const {
    for (const int64_t slot : slots) QDIFF_CHECK(0 <= slot && slot < slots_, "qdiff: there is no slot ", slot);
  }

  int64_t slots_;
  std::vector<Step> steps_;
};

// All plans there are.
class Programs {
 public:
  int64_t add(std::shared_ptr<Program> program) {
    const std::lock_guard<std::mutex> lock(mutex_);
    programs_[++last_] = std::move(program);
    return last_;
  }

  void remove(int64_t number) {
    std::shared_ptr<Program> gone;  // after the lock: its tensors go with it
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto found = programs_.find(number); found != programs_.end()) {
      gone = std::move(found->second);
      programs_.erase(found);
    }
  }

  std::shared_ptr<Program> at(int64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = programs_.find(number);
    QDIFF_CHECK(found != programs_.end(), "qdiff: there is no plan ", number);
    return found->second;
  }

 private:
  std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<Program>> programs_;
  int64_t last_ = 0;
};

Programs& programs() {
  static Programs* const all = new Programs;  // never destroyed: Python may let go of plans after everything else
  return *all;
}

}  // namespace

int64_t plan_new(int64_t slots) { return programs().add(std::make_shared<Program>(slots)); }

void plan_delete(int64_t plan) { programs().remove(plan); }

void plan_add(int64_t plan, const Text& name, const Text& overload, const Integers& types, const Integers& code,
              const Floats& floats, const Tensors& tensors, int64_t result, const Integers& dead) {
  const auto program = programs().at(plan);
  Reader reader(code, floats, tensors, program->slots());
  program->add(name, overload, types, reader, result, dead);
}

std::tuple<Tensors, Integers> plan_run(int64_t plan, const Tensors& tensors, const Floats& numbers,
                                       const Integers& tensor_results, const Integers& number_results) {
  return programs().at(plan)->run(tensors, numbers, tensor_results, number_results);
}

}  // namespace qdiff
