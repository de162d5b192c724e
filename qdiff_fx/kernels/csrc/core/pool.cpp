#include "core/pool.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "core/error.h"

namespace qdiff {
namespace {

constexpr size_t kKept = size_t{256} << 20;  // what waits for its next use

void* allocate(size_t bytes) {
  void* memory = std::aligned_alloc(64, bytes);
  QDIFF_CHECK(memory, "qdiff: there is no memory to allocate ", bytes, " bytes for a result");
  return memory;
}

class Pool {
 public:
  void* take(size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto& free = free_[bytes];
      if (!free.empty()) {
        void* memory = free.back();
        free.pop_back();
        kept_ -= bytes;
        return memory;
      }
    }
    return allocate(bytes);
  }

  void give_back(void* memory, size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (kept_ + bytes <= kKept) {
        free_[bytes].push_back(memory);
        kept_ += bytes;
        return;
      }
    }
    std::free(memory);
  }

 private:
  std::mutex mutex_;
  std::map<size_t, std::vector<void*>> free_;
  size_t kept_ = 0;
};

// Never destroyed: tensors may outlive everything else in the process.
Pool& pool() {
  static Pool* const only = new Pool;
  return *only;
}

}  // namespace

size_t pooled_size(size_t bytes) {
  size_t step = kLeastPooled / 8;
  while (step * 16 < bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

void* take_pooled(size_t size) { return pool().take(size); }
void give_back_pooled(void* memory, size_t size) noexcept { pool().give_back(memory, size); }

Bytes::Bytes(size_t bytes) : size_(bytes < kLeastPooled ? 0 : pooled_size(bytes)) {
  memory_ = size_ ? take_pooled(size_) : allocate((bytes / 64 + 1) * 64);
}

Bytes::Bytes(Bytes&& other) noexcept { *this = std::move(other); }

Bytes& Bytes::operator=(Bytes&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(size_, other.size_);
  return *this;
}

Bytes::~Bytes() {
  if (size_) {
    give_back_pooled(memory_, size_);
  } else {
    std::free(memory_);
  }
}

}  // namespace qdiff
