#include "core/library.h"

const qdiff::Library* qdiff_library() {
  static const qdiff::Library library = {QDIFF_VERSION, &qdiff::kKernels};
  return &library;
}
