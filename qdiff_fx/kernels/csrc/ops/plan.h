// A run of operators called one after another: Python's share of every call would be felt at small batches.
//
// Plans are known by numbers, because torch's stable interface has no classes.
#pragma once

#include <tuple>

#include "ops/text.h"
#include "ops/tensor.h"

namespace qdiff {

int64_t plan_new(int64_t slots);
void plan_delete(int64_t plan);

// Adds a call. Arguments are written in whole numbers (see plan.cpp), all that the schema names, in its order; `types` says
// of what type each is, and last the result, for operators that are not our own.
void plan_add(int64_t plan, const Text& name, const Text& overload, const Integers& types, const Integers& code,
              const Floats& floats, const Tensors& tensors, int64_t result, const Integers& dead);

// The inputs are the first slots, tensors before numbers; returns the slots asked for, tensors and numbers.
std::tuple<Tensors, Integers> plan_run(int64_t plan, const Tensors& tensors, const Floats& numbers,
                                       const Integers& tensor_results, const Integers& number_results);

}  // namespace qdiff
