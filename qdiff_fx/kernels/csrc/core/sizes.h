// A shape, or anything else that is some whole numbers in a row; the numbers belong to somebody else.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <vector>

namespace qdiff {

class Sizes {
 public:
  Sizes() = default;
  Sizes(const int64_t* numbers, size_t count) : numbers_(numbers), count_(count) {}
  Sizes(const std::vector<int64_t>& numbers) : Sizes(numbers.data(), numbers.size()) {}
  Sizes(const std::initializer_list<int64_t>& numbers) : Sizes(std::data(numbers), numbers.size()) {}
  template <size_t N>
  Sizes(const std::array<int64_t, N>& numbers) : Sizes(numbers.data(), N) {}

  const int64_t* data() const { return numbers_; }
  const int64_t* begin() const { return numbers_; }
  const int64_t* end() const { return numbers_ + count_; }
  size_t size() const { return count_; }
  bool empty() const { return count_ == 0; }
  int64_t operator[](size_t at) const { return numbers_[at]; }
  int64_t back() const { return numbers_[count_ - 1]; }
  std::vector<int64_t> copy() const { return {begin(), end()}; }

  friend bool operator==(const Sizes& a, const Sizes& b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

  friend std::ostream& operator<<(std::ostream& out, const Sizes& sizes) {
    out << '[';
    for (size_t i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
    return out << ']';
  }

 private:
  const int64_t* numbers_ = nullptr;
  size_t count_ = 0;
};

}  // namespace qdiff
