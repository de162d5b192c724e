// Attention from the dot-product tile alone, for instruction sets without a kernel of their own: keys and values are
// packed as if they were the weights of a linear layer. Included after conv.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/attention.h"
#include "core/conv.h"

namespace qdiff {
namespace {

constexpr int64_t kMostKeys = 65536;  // |sum P v| <= 255 * 128 * keys must stay below 2^31

inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Sizes in bytes of the packed operands of one (batch, head), and of one thread's scratch.
struct TileLayout {
  int64_t depth_quads, key_quads, keys, dims;  // keys and dims rounded up to vectors
  int64_t starts, values, head_bytes;
  int64_t scores, probs, acc, scratch_bytes;

  explicit TileLayout(const Attention& p) {
    depth_quads = ceil_div(p.head_dim, 4);
    key_quads = ceil_div(p.key_len, 4);
    keys = round_up(p.key_len, kLanes);
    dims = round_up(p.head_dim, kLanes);
    starts = round_up(keys * depth_quads * 4, 64);
    values = starts + round_up(keys * 4, 64);
    head_bytes = values + round_up(dims * key_quads * 4, 64) + round_up(dims * 4, 64);
    scores = round_up(kTileRows * depth_quads * 4, 64);
    probs = scores + kTileRows * keys * 4;
    acc = probs + round_up(kTileRows * key_quads * 4 + kLanes, 64);
    scratch_bytes = acc + kTileRows * kBlockChannels * 4;
  }
};

Plan tile_plan(const Attention& p) {
  const TileLayout l(p);
  const int64_t heads = p.batch * p.heads;
  return {heads, heads * ceil_div(p.query_len, kTileRows), kTileRows * p.key_len * p.head_dim * 2,
          size_t(heads * l.head_bytes), size_t(l.scratch_bytes)};
}

void tile_pack(const Attention& p, uint8_t* packed, int64_t begin, int64_t end) {
  const TileLayout l(p);
  for (int64_t head = begin; head < end; ++head) {
    const int64_t b = head / p.heads, h = head % p.heads;
    uint8_t* to = packed + head * l.head_bytes;
    int32_t* starts = reinterpret_cast<int32_t*>(to + l.starts);
    const int64_t key_strides[3] = {p.k_stride[2], 1, 0}, value_strides[3] = {1, p.v_stride[2], 0};
    pack_weight(p.k + b * p.k_stride[0] + h * p.k_stride[1], p.key_len, p.head_dim, 1, key_strides, false,
                reinterpret_cast<int8_t*>(to), starts, 0, ceil_div(p.key_len, kBlockChannels));
    for (int64_t key = 0; key < l.keys; ++key) starts[key] *= kCodeOffset - p.q_zero_point;
    int32_t* value_starts = reinterpret_cast<int32_t*>(to + l.values + round_up(l.dims * l.key_quads * 4, 64));
    pack_weight(p.v + b * p.v_stride[0] + h * p.v_stride[1], p.head_dim, p.key_len, 1, value_strides, false,
                reinterpret_cast<int8_t*>(to + l.values), value_starts, 0, ceil_div(p.head_dim, kBlockChannels));
    for (int64_t dim = 0; dim < l.dims; ++dim) value_starts[dim] *= kCodeOffset;
  }
}

// Float scores of up to 6 rows against all keys: [row][keys].
void tile_scores(const Attention& p, const TileLayout& l, const uint8_t* head, const Rows& queries, int64_t rows,
                 float* scores, int32_t* acc) {
  const int32_t* starts = reinterpret_cast<const int32_t*>(head + l.starts);
  for (int64_t first = 0; first < l.keys; first += kBlockChannels) {
    const int64_t vectors = std::min(kBlockVectors, (l.keys - first) / kLanes);
    const int8_t* keys = reinterpret_cast<const int8_t*>(head + first * l.depth_quads * 4);
    dot_tile(&queries, 1, l.depth_quads, keys, rows, vectors, starts + first, acc);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t v = 0; v < vectors; ++v) {
        const Ints dots = load_raw<Ints>(acc + r * kBlockChannels + v * kLanes);
        store(scores + r * l.keys + first + v * kLanes, to_floats(dots) * p.score_scale);
      }
    }
  }
}

// Probability codes of one row, zeros behind the last key; returns their sum.
int64_t tile_probabilities(const Attention& p, const TileLayout& l, float* scores, const float* mask, uint8_t* probs) {
  float peak = -std::numeric_limits<float>::infinity();
  for (int64_t key = 0; key < p.key_len; ++key) {
    if (mask) scores[key] += mask[key];
    peak = std::max(peak, scores[key]);
  }
  std::memset(probs, 0, size_t(l.key_quads * 4));
  if (std::isinf(peak)) return 0;  // everything is masked
  int64_t sum = 0;
  for (int64_t first = 0; first < p.key_len; first += kLanes) {
    const int64_t count = std::min(kLanes, p.key_len - first);
    const Floats x = (load_some(scores + first, count) - peak) * kLog2E;
    // Below 2^-126 it is 0 as far as codes are concerned.
    const Ints codes = nearest(exponential2(x) * float(p.levels));
    store_codes(probs + first, to_bytes(codes), count);
    alignas(64) int32_t each[kLanes];
    store_raw(each, codes);
    for (int64_t lane = 0; lane < count; ++lane) sum += each[lane];
  }
  return sum;
}

void tile_store(const Attention& p, const int32_t* acc, int64_t sum, int64_t at, int64_t first, int64_t dims) {
  const float factor = sum == 0 ? 0.0f : p.v_scale / float(sum);
  with_output(p.out, p.out_type, p.quantizer, [&](const auto& out) {
    for (int64_t d = 0; d < dims; d += kLanes) {
      const Floats x = to_floats(load_raw<Ints>(acc + d)) * factor;
      out.write(at + first + d, x, std::min(kLanes, dims - d));
    }
  });
}

void tile_attend(const Attention& p, const uint8_t* packed, uint8_t* scratch, int64_t begin, int64_t end) {
  const TileLayout l(p);
  const int64_t blocks = ceil_div(p.query_len, kTileRows);
  float* scores = reinterpret_cast<float*>(scratch + l.scores);
  int32_t* acc = reinterpret_cast<int32_t*>(scratch + l.acc);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t head = task / blocks, b = head / p.heads, h = head % p.heads, row = task % blocks * kTileRows;
    const int64_t rows = std::min(kTileRows, p.query_len - row);
    const uint8_t* operands = packed + head * l.head_bytes;
    Rows queries{}, probs{};
    int64_t sums[kTileRows];
    for (int64_t r = 0; r < rows; ++r) {
      uint8_t* query = scratch + r * l.depth_quads * 4;
      std::memset(query, 0, size_t(l.depth_quads * 4));
      std::memcpy(query, p.q + b * p.q_stride[0] + h * p.q_stride[1] + (row + r) * p.q_stride[2], size_t(p.head_dim));
      queries[r] = query;
    }
    tile_scores(p, l, operands, queries, rows, scores, acc);
    for (int64_t r = 0; r < rows; ++r) {
      uint8_t* codes = scratch + l.probs + r * l.key_quads * 4;
      const int64_t mask_at = b * p.mask_stride[0] + h * p.mask_stride[1] + (row + r) * p.mask_stride[2];
      sums[r] = tile_probabilities(p, l, scores + r * l.keys, p.mask ? p.mask + mask_at : nullptr, codes);
      probs[r] = codes;
    }
    const int32_t* starts = reinterpret_cast<const int32_t*>(operands + l.values + round_up(l.dims * l.key_quads * 4, 64));
    for (int64_t first = 0; first < l.dims; first += kBlockChannels) {
      const int64_t vectors = std::min(kBlockVectors, (l.dims - first) / kLanes);
      const int8_t* values = reinterpret_cast<const int8_t*>(operands + l.values + first * l.key_quads * 4);
      dot_tile(&probs, 1, l.key_quads, values, rows, vectors, starts + first, acc);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = b * p.out_stride[0] + h * p.out_stride[1] + (row + r) * p.out_stride[2];
        tile_store(p, acc + r * kBlockChannels, sums[r], at, first, std::min(kBlockChannels, p.head_dim - first));
      }
    }
  }
}

}  // namespace
}  // namespace qdiff
