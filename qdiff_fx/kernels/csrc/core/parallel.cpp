#include "core/parallel.h"

namespace qdiff {

Threads threads = {
    [] { return int64_t{1}; },
    [](int64_t count, int64_t, Range range, void* context) {
      if (count > 0) range(0, count, context);
    },
};

}  // namespace qdiff
