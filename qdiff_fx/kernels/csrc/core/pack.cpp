// Weights as the kernels read them. Plain C++: it runs once per layer.

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/kernels.h"

namespace qdiff {
namespace {

// One block of up to 64 output channels: [tap][quad][vectors][16][4].
void pack_block(const int8_t* codes, int64_t channels, int64_t in_channels, int64_t taps, const int64_t* strides,
                int8_t* packed, int32_t* sums) {
  const int64_t vectors = ceil_div(channels, kLanes), quads = ceil_div(in_channels, 4);
  const int64_t group_bytes = vectors * kVectorBytes;
  std::memset(packed, 0, size_t(taps * quads * group_bytes));
  std::fill(sums, sums + vectors * kLanes, 0);
  for (int64_t o = 0; o < channels; ++o) {
    for (int64_t i = 0; i < in_channels; ++i) {
      const int8_t* from = codes + o * strides[0] + i * strides[1];
      int8_t* to = packed + i / 4 * group_bytes + o * 4 + i % 4;
      for (int64_t t = 0; t < taps; ++t) {
        const int8_t value = from[t * strides[2]];
        to[t * quads * group_bytes] = value;
        sums[o] += value;
      }
    }
  }
}

void pack_nibbles(const int8_t* codes, int64_t groups, int64_t vectors, int8_t* packed) {
  std::memset(packed, 0, size_t(groups * nibble_bytes(vectors)));
  for (int64_t group = 0; group < groups; ++group, packed += nibble_bytes(vectors)) {
    for (int64_t v = 0; v < vectors; ++v, codes += kVectorBytes) {
      int8_t* pair = packed + v / 2 * kVectorBytes;
      for (int64_t i = 0; i < kVectorBytes; ++i) pair[i] = int8_t(pair[i] | (codes[i] & 15) << (v % 2 * 4));
    }
  }
}

}  // namespace

void pack_weight(const int8_t* codes, int64_t out_channels, int64_t in_channels, int64_t taps, const int64_t* strides,
                 bool nibbles, int8_t* packed, int32_t* sums, int64_t begin_block, int64_t end_block) {
  const int64_t groups = taps * ceil_div(in_channels, 4);
  std::vector<int8_t> whole(nibbles ? size_t(groups * kBlockVectors * kVectorBytes) : 0);
  for (int64_t block = begin_block; block < end_block; ++block) {
    const int64_t first = block * kBlockChannels, channels = std::min(kBlockChannels, out_channels - first);
    int8_t* to = packed + groups * quad_bytes(first, nibbles);
    pack_block(codes + first * strides[0], channels, in_channels, taps, strides, nibbles ? whole.data() : to,
               sums + first);
    if (nibbles) pack_nibbles(whole.data(), groups, ceil_div(channels, kLanes), to);
  }
}

}  // namespace qdiff
