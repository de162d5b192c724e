// What a library of one instruction set is for whoever loads it.
#pragma once

#include <cstdint>

#include "core/kernels.h"

namespace qdiff {

struct Library {
  uint64_t version;  // QDIFF_VERSION of its build: whoever calls it has to read the structures of kernels.h alike
  const Kernels* kernels;
};

}  // namespace qdiff

#define QDIFF_EXPORT __attribute__((visibility("default")))

// A digest of all sources, which the build defines.
#ifndef QDIFF_VERSION
#define QDIFF_VERSION 0
#endif

// The one symbol of such a library.
extern "C" QDIFF_EXPORT const qdiff::Library* qdiff_library();
