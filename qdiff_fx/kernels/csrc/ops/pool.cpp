#include "ops/pool.h"

#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

namespace qdiff {
namespace {

constexpr size_t kLeast = 64 * 1024;       // smaller tensors are the allocator's business
constexpr size_t kKept = size_t{256} << 20;  // what waits for its next use

constexpr size_t kMost = size_t{1} << 38;  // bytes of one tensor; operators check sizes long before

// Sizes in steps of an eighth of a power of two, so that tensors of nearly the same size share memory.
size_t size_class(size_t bytes) {
  size_t step = kLeast / 8;
  while (step * 16 < bytes) step *= 2;
  return (bytes + step - 1) / step * step;
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
    void* memory = std::aligned_alloc(64, bytes);
    TORCH_CHECK(memory, "qdiff: there is no memory to allocate ", bytes, " bytes for a result");
    return memory;
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

at::Tensor pooled(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype) {
  const auto options = at::TensorOptions().dtype(dtype);
  size_t last = 0;
  for (const int64_t size : sizes) {
    TORCH_CHECK(size >= 0, "qdiff: there is no size ", size);
    if (size == 0) return at::empty_strided(sizes, strides, options);
  }
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    const size_t size = size_t(sizes[dim]) - 1, stride = size_t(strides[dim]);
    TORCH_CHECK(size == 0 || stride <= (kMost - last) / size, "qdiff: a result ", sizes, " is too large");
    last += size * stride;
  }
  const size_t bytes = (last + 1) * options.dtype().itemsize();
  if (bytes < kLeast) return at::empty_strided(sizes, strides, options);
  const size_t taken = size_class(bytes);
  return at::from_blob(pool().take(taken), sizes, strides, [taken](void* memory) { pool().give_back(memory, taken); },
                       options);
}

at::Tensor pooled(at::IntArrayRef sizes, at::ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t dim = sizes.size(); dim-- > 1;) strides[dim - 1] = strides[dim] * std::max<int64_t>(1, sizes[dim]);
  return pooled(sizes, strides, dtype);
}

}  // namespace qdiff
