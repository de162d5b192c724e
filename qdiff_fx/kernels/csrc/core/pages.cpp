#include "core/pages.h"

#include <cstdint>
#include <cstdlib>

// Sanitizers see what lies behind an allocation, not what lies behind a mapping.
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#define QDIFF_MAPS_PAGES 1
#include <sys/mman.h>
#endif

namespace qdiff {

#if defined(QDIFF_MAPS_PAGES)

void* take_pages(size_t bytes) noexcept {
  constexpr uintptr_t kPage = kLeastPages;
  bytes = (bytes + kPage - 1) / kPage * kPage;
  // Somewhat too much, of which what lies before and behind the large pages goes back.
  void* mapped = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  const uintptr_t from = reinterpret_cast<uintptr_t>(mapped), first = (from + kPage - 1) / kPage * kPage;
  char* memory = static_cast<char*>(mapped) + (first - from);
  if (first != from) munmap(mapped, first - from);
  if (first - from != kPage) munmap(memory + bytes, kPage - (first - from));
#if defined(MADV_HUGEPAGE)
  madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

void give_back_pages(void* memory, size_t bytes) noexcept {
  munmap(memory, (bytes + kLeastPages - 1) / kLeastPages * kLeastPages);
}

#else

void* take_pages(size_t bytes) noexcept { return std::aligned_alloc(64, bytes); }
void give_back_pages(void* memory, size_t) noexcept { std::free(memory); }

#endif

}  // namespace qdiff
