// A text that torch passes to an operator. Its own conversion to std::string leaks one, as of release 2.13.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>

namespace qdiff {

struct Text : std::string {
  using std::string::string;
};

}  // namespace qdiff

template <>
struct torch::stable::detail::ToImpl<qdiff::Text> {
  static qdiff::Text call(StableIValue value, uint64_t, bool) {
    const auto handle = torch::stable::detail::to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    torch_string_length(handle, &length);
    torch_string_c_str(handle, &data);
    const qdiff::Text text(data, length);
    torch_delete_string(handle);
    return text;
  }
};
