// Planned calls of torch's operators through its dispatcher.
#pragma once

#include <memory>
#include <string>

#include "ops/direct.h"

namespace qdiff {

// types: those of the arguments and of the one result, see `TypeCode`; they have to be those of the operator's schema.
std::unique_ptr<Call> dispatched(const std::string& name, const std::string& overload, const Integers& types, Reader& reader);

}  // namespace qdiff
