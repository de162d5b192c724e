#include "core/pool.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <mutex>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/pages.h"

namespace qdiff {
namespace {

constexpr size_t kMostWaiting = size_t{192} << 20;
// Pieces of different sizes do not replace each other, so there are more of them than were in use at once. As much as this is
// no matter; and beyond what was in use at once at most, so much.
constexpr size_t kNoMatter = size_t{128} << 20, kSpare = size_t{8} << 20;

void* allocate(size_t bytes) {
  void* memory = bytes < kLeastPages ? std::aligned_alloc(64, bytes) : take_pages(bytes);
  QDIFF_CHECK(memory, "qdiff: there is no memory to allocate ", bytes, " bytes for a result");
  return memory;
}

void release(void* memory, size_t bytes) noexcept { bytes < kLeastPages ? std::free(memory) : give_back_pages(memory, bytes); }

// Pieces in use, and those that wait for their next use. Networks that work on small images first and on large ones
// afterwards would be left with the pieces of the small ones: those that have waited longest go before new ones come.
class Pool {
 public:
  void* take(size_t bytes) {
    std::vector<Piece> gone;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      used_ += bytes;
      most_ = std::max(most_, used_);
      const auto found = std::find_if(waiting_.rbegin(), waiting_.rend(), [&](const Piece& each) { return each.bytes == bytes; });
      if (found != waiting_.rend()) {
        void* memory = found->memory;
        waiting_bytes_ -= bytes;
        waiting_.erase(std::next(found).base());
        return memory;
      }
      const size_t most = std::max(kNoMatter, most_ + kSpare);
      gone = leave(most - used_);
    }
    for (const Piece& each : gone) release(each.memory, each.bytes);
    try {
      return allocate(bytes);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      used_ -= bytes;
      throw;
    }
  }

  void give_back(void* memory, size_t bytes) noexcept {
    std::vector<Piece> gone;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      used_ -= bytes;
      waiting_.push_back({memory, bytes});
      waiting_bytes_ += bytes;
      gone = leave(kMostWaiting);
    }
    for (const Piece& each : gone) release(each.memory, each.bytes);
  }

 private:
  struct Piece {
    void* memory;
    size_t bytes;
  };

  // Those that have to go for no more than so many bytes to wait.
  std::vector<Piece> leave(size_t most) {
    auto last = waiting_.begin();
    for (; waiting_bytes_ > most; ++last) waiting_bytes_ -= last->bytes;
    std::vector<Piece> gone(waiting_.begin(), last);
    waiting_.erase(waiting_.begin(), last);
    return gone;
  }

  std::mutex mutex_;
  std::vector<Piece> waiting_;  // the one that has waited longest first
  size_t used_ = 0, most_ = 0, waiting_bytes_ = 0;
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
