// The library of operators: `qdiff_start` registers them, with the kernels of one instruction set.

#include "core/library.h"

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>

#include <memory>

#include "core/convolution.h"
#include "core/error.h"
#include "core/parallel.h"
#include "ops/operators.h"
#include "ops/plan.h"
#include "ops/text.h"

namespace qdiff {
namespace {

using torch::stable::detail::StableLibrary;

const Kernels* chosen = nullptr;

void use_threads_of_torch() {
  threads.count = [] {
    uint32_t count = 1;
    check_call(torch_get_num_threads(&count), "get_num_threads");
    return int64_t(count);
  };
  threads.each = [](int64_t count, int64_t grain, Range range, void* context) {
    check_call(torch_parallel_for(0, count, grain, range, context), "parallel_for");
  };
}

void choose_algorithm(const Text& name) {
  if (name == "cheapest") return set_convolution_algorithm(Algorithm::cheapest);
  if (name == "direct") return set_convolution_algorithm(Algorithm::direct);
  if (name == "winograd") return set_convolution_algorithm(Algorithm::winograd);
  fail("set_convolution_algorithm: cheapest, direct or winograd, not ", name);
}

// The libraries stay as long as the process.
StableLibrary& library(StableLibrary::Kind kind, const char* name, const char* key) {
  return *new StableLibrary(kind, name, key, "qdiff", 0);
}

void register_all() {
  StableLibrary& operators = library(StableLibrary::Kind::IMPL, "qdiff", "CPU");
  operators.impl("adaround_step", TORCH_BOX(&adaround_step));
  operators.impl("pack_weight", TORCH_BOX(&packed_weight));
  operators.impl("nearest_codes", TORCH_BOX(&nearest_codes));
  operators.impl("histogram", TORCH_BOX(&histogram));
  operators.impl("range_errors", TORCH_BOX(&range_errors));
  operators.impl("int_conv", TORCH_BOX(&int_conv));
  operators.impl("int_depthwise_conv", TORCH_BOX(&int_depthwise_conv));
  operators.impl("int_gram", TORCH_BOX(&int_gram));
  operators.impl("round_with_feedback", TORCH_BOX(&round_with_feedback));
  operators.impl("int_linear", TORCH_BOX(&int_linear));
  operators.impl("group_norm_act", TORCH_BOX(&group_norm_act));
  operators.impl("layer_norm_act", TORCH_BOX(&layer_norm_act));
  operators.impl("act_quantize", TORCH_BOX(&act_quantize));
  operators.impl("act_quantize_rest", TORCH_BOX(&act_quantize_rest));
  operators.impl("int_attention_vnni", TORCH_BOX(&int_attention));
  operators.impl("int_attention_vnni.numbers", TORCH_BOX(&int_attention_numbers));

  StableLibrary& settings = library(StableLibrary::Kind::FRAGMENT, "qdiff", nullptr);
  settings.def("set_convolution_algorithm(str name) -> ()");
  settings.impl("set_convolution_algorithm", TORCH_BOX(&choose_algorithm));

  StableLibrary& plans = library(StableLibrary::Kind::FRAGMENT, "qdiff_native", nullptr);
  plans.def("plan_new(int slots) -> int");
  plans.impl("plan_new", TORCH_BOX(&plan_new));
  plans.def(
      "plan_add(int plan, str name, str overload, int[] types, int[] code, float[] floats, Tensor[] tensors, int result, "
      "int[] dead) -> ()");
  plans.impl("plan_add", TORCH_BOX(&plan_add));
  plans.def(
      "plan_run(int plan, Tensor[] tensors, float[] numbers, int[] tensor_results, int[] number_results) -> (Tensor[], int[])");
  plans.impl("plan_run", TORCH_BOX(&plan_run));
}

}  // namespace

const Kernels& kernels() { return *chosen; }

}  // namespace qdiff

extern "C" QDIFF_EXPORT uint64_t qdiff_version() { return QDIFF_VERSION; }

// No operator: garbage is collected at any moment, also while a mode watches what torch is asked to do.
extern "C" QDIFF_EXPORT void qdiff_plan_delete(int64_t plan) { qdiff::plan_delete(plan); }

// Returns why it cannot be, or null; called once in a process.
extern "C" QDIFF_EXPORT const char* qdiff_start(const qdiff::Library* set) {
  if (set->version != QDIFF_VERSION) return "the kernels and the operators are of different versions";
  try {
    qdiff::chosen = set->kernels;
    qdiff::use_threads_of_torch();
    qdiff::register_all();
    return nullptr;
  } catch (const std::exception& error) {
    static const std::string reason = error.what();
    return reason.c_str();
  }
}
