// Memory straight from the system, for what is many pages large: given back, it is the system's again at once.
#pragma once

#include <cstddef>

namespace qdiff {

constexpr size_t kLeastPages = size_t{2} << 20;

// Uninitialised memory of at least kLeastPages bytes, aligned to as many where the system lets us; null where there is none.
// It is asked to come in large pages: a fault for every 4 KiB takes longer than many a kernel.
void* take_pages(size_t bytes) noexcept;
void give_back_pages(void* memory, size_t bytes) noexcept;

}  // namespace qdiff
