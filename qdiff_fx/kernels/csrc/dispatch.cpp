// Which kernels this process runs.

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "kernels.h"

namespace qdiff {

const Kernels* best_kernels() {
  static const Kernels* const best = []() -> const Kernels* {
    const char* wanted = std::getenv("QDIFF_KERNELS");
    const bool any = !wanted || !*wanted || !std::strcmp(wanted, "1");
    // Fastest first. A new instruction set adds its function here.
    for (const auto candidate : {avx512_vnni_kernels, avx2_kernels, portable_kernels}) {
      const Kernels* found = candidate();
      if (found && (any || !std::strcmp(wanted, found->name))) return found;
    }
    return nullptr;
  }();
  return best;
}

}  // namespace qdiff
