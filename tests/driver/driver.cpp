// The kernels of one instruction set, without torch, over the calls that a file holds.
//
//   driver run CASES RESULTS       writes the results
//   driver compare CASES RESULTS   says which results are others than those written, and fails if any is
//
// Every call is run by one thread and by three, convolutions directly and by Winograd's algorithm: it has one result.

#include <cstdio>

#include "case_file.h"
#include "operators.h"

namespace {

Bytes result_of(const Case& c, const Way& way) {
  static const std::map<std::string, Bytes (*)(const Case&, const Way&)> operators = {
      {"int_conv", int_conv},           {"int_linear", int_linear},     {"group_norm_act", group_norm_act},
      {"layer_norm_act", layer_norm_act}, {"act_quantize", act_quantize}, {"act_quantize_rest", act_quantize_rest},
      {"int_attention_vnni", int_attention_vnni}, {"int_depthwise_conv", int_depthwise_conv}, {"int_gram", int_gram},
      {"round_with_feedback", round_with_feedback}, {"nearest_codes", nearest_codes}, {"histogram", histogram}};
  const auto found = operators.find(c.operation);
  if (found == operators.end()) throw std::runtime_error("there is no operator " + c.operation);
  return found->second(c, way);
}

// Whether they are the same; says where they are not.
bool same(const Bytes& made, const Bytes& expected, int64_t number, const Case& c, const Way& way, const char* others) {
  if (made == expected) return true;
  size_t at = 0;
  while (at < std::min(made.size(), expected.size()) && made[at] == expected[at]) ++at;
  std::printf("case %lld, %s, %s with %lld thread%s: %zu bytes, %s %zu, other ones from byte %zu on\n", (long long)number,
              c.operation.c_str(), way.winograd ? "by Winograd's algorithm" : "directly", (long long)way.threads,
              way.threads > 1 ? "s" : "", made.size(), others, expected.size(), at);
  return false;
}

int run(bool compare, const char* cases, const char* results) {
  std::ifstream in(cases, std::ios::binary);
  std::fstream file(results, std::ios::binary | (compare ? std::ios::in : std::ios::out | std::ios::trunc));
  if (!in || !file) throw std::runtime_error("a file cannot be opened");
  int64_t count = 0, wrong = 0;
  for (; in.peek() != EOF; ++count) {
    Case c;
    c.read(in);
    const Bytes first = result_of(c, {1, false});
    Bytes expected = first;
    if (compare) file.read(reinterpret_cast<char*>(expected.data()), std::streamsize(expected.size()));
    else file.write(reinterpret_cast<const char*>(first.data()), std::streamsize(first.size()));
    if (!file) throw std::runtime_error("the results end too early");
    bool good = same(first, expected, count, c, {1, false}, "expected");
    for (const Way& way : {Way{3, false}, Way{1, true}, Way{3, true}}) {
      if (way.winograd && c.operation != "int_conv") continue;
      good &= same(result_of(c, way), first, count, c, way, "directly with one thread");
    }
    wrong += !good;
  }
  std::printf("%s: %lld cases, %lld of them wrong\n", qdiff::kKernels.name, (long long)count, (long long)wrong);
  return wrong != 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 4 ? argv[1] : "";
  if (what != "run" && what != "compare") {
    std::fprintf(stderr, "usage: driver run|compare CASES RESULTS\n");
    return 2;
  }
  try {
    return run(what == "compare", argv[2], argv[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
