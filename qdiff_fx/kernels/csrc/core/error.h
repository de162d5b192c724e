// Errors, whose text is what the user reads.
#pragma once

#include <sstream>
#include <stdexcept>

namespace qdiff {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

}  // namespace qdiff

// What the text is made of is only looked at where the condition does not hold.
#define QDIFF_CHECK(condition, ...)                       \
  do {                                                    \
    if (!(condition)) [[unlikely]] ::qdiff::fail(__VA_ARGS__); \
  } while (0)
