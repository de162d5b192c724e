// Memory of results. Allocated anew, large tensors cost a page fault per 4 KiB at every step.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qdiff {

constexpr size_t kLeastPooled = 64 * 1024;  // smaller pieces are the allocator's business

// What the pool has in place of so many bytes: sizes in steps of an eighth of a power of two, so that pieces of nearly the
// same size share memory.
size_t pooled_size(size_t bytes);

// Uninitialised, 64-byte aligned memory of a `pooled_size`, which is also how it is given back.
void* take_pooled(size_t size);
void give_back_pooled(void* memory, size_t size) noexcept;

// Uninitialised, 64-byte aligned bytes, gone with this object.
class Bytes {
 public:
  Bytes() = default;
  explicit Bytes(size_t bytes);
  Bytes(Bytes&& other) noexcept;
  Bytes& operator=(Bytes&& other) noexcept;
  ~Bytes();

  template <typename T = uint8_t>
  T* data() const {
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};

}  // namespace qdiff
