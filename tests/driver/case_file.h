// Calls of operators as `cases.py` writes them: lines of text, and behind the line of a tensor its bytes.
//
//   call int_conv
//   integers kernel 3 3
//   numbers scales 0x1.999999999999ap-4
//   tensor codes u8 2 5 7 16
//   <2 * 5 * 7 * 16 bytes, channels last, and a newline>
//   end
#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <map>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/attention.h"

using Bytes = std::vector<uint8_t>;

struct Tensor {
  qdiff::Type type;
  std::vector<int64_t> sizes;
  Bytes bytes;

  int64_t elements() const { return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<int64_t>()); }
  const float* floats() const { return reinterpret_cast<const float*>(bytes.data()); }
  const int8_t* codes() const { return reinterpret_cast<const int8_t*>(bytes.data()); }
};

inline int64_t size_of(qdiff::Type type) {
  return type == qdiff::Type::f32 ? 4 : type == qdiff::Type::f16 || type == qdiff::Type::bf16 ? 2 : 1;
}

class Case {
 public:
  std::string operation;

  const std::vector<int64_t>& integers(const std::string& name) const { return of(integers_, name); }
  int64_t integer(const std::string& name) const { return integers(name).at(0); }
  const std::vector<double>& numbers(const std::string& name) const { return of(numbers_, name); }
  double number(const std::string& name) const { return numbers(name).at(0); }
  const std::vector<Tensor>& tensors(const std::string& name) const { return of(tensors_, name); }
  const Tensor& tensor(const std::string& name) const { return tensors(name).at(0); }
  const Tensor* optional(const std::string& name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : &found->second.at(0);
  }

  // False at the end of the file.
  bool read(std::istream& in) {
    std::string line, kind, name;
    if (!std::getline(in, line)) return false;
    std::istringstream(line) >> kind >> operation;
    if (kind != "call") throw std::runtime_error("expected a call, not " + line);
    while (std::getline(in, line) && line != "end") {
      std::istringstream words(line);
      words >> kind >> name;
      if (kind == "integers") read_numbers(words, integers_[name], [](const char* x) { return int64_t(std::atoll(x)); });
      else if (kind == "numbers") read_numbers(words, numbers_[name], [](const char* x) { return std::strtod(x, nullptr); });
      else if (kind == "tensor") tensors_[name].push_back(read_tensor(words, in));
      else throw std::runtime_error("neither integers nor numbers nor a tensor: " + line);
    }
    if (!in) throw std::runtime_error("the file ends within " + operation);
    return true;
  }

 private:
  template <typename Value>
  const Value& of(const std::map<std::string, Value>& all, const std::string& name) const {
    const auto found = all.find(name);
    if (found == all.end()) throw std::runtime_error(operation + " lacks " + name);
    return found->second;
  }

  template <typename T, typename Parse>
  static void read_numbers(std::istream& words, std::vector<T>& to, const Parse& parse) {
    for (std::string word; words >> word;) to.push_back(parse(word.c_str()));
  }

  static Tensor read_tensor(std::istream& words, std::istream& in) {
    static const std::map<std::string, qdiff::Type> types = {{"f32", qdiff::Type::f32}, {"f16", qdiff::Type::f16},
                                                             {"bf16", qdiff::Type::bf16}, {"u8", qdiff::Type::u8},
                                                             {"s8", qdiff::Type::s8}};
    std::string type;
    words >> type;
    Tensor made{types.at(type), {}, {}};
    read_numbers(words, made.sizes, [](const char* x) { return int64_t(std::atoll(x)); });
    made.bytes.resize(size_t(made.elements() * size_of(made.type)));
    in.read(reinterpret_cast<char*>(made.bytes.data()), std::streamsize(made.bytes.size()));
    in.get();
    return made;
  }

  std::map<std::string, std::vector<int64_t>> integers_;
  std::map<std::string, std::vector<double>> numbers_;
  std::map<std::string, std::vector<Tensor>> tensors_;
};
