// Integer kernels for every other processor: plain C++.

#include "core/kernels.h"

#include "core/adaround_step.h"
#include "core/conv.h"
#include "core/feedback.h"
#include "core/gram.h"
#include "core/histogram.h"
#include "core/nearest_codes.h"
#include "core/range_errors.h"
#include "core/norm.h"
#include "core/pointwise.h"
#include "core/winograd.h"

#include "core/attention_tile.h"

namespace qdiff {
namespace {

// Byte j of every channel's quad, as numbers.
QDIFF_INLINE Ints byte_of(const Ints& quads, int j) { return (quads << (24 - 8 * j)) >> 24; }

void dot_vector(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t group_bytes,
                int64_t row_count, const int32_t* start, int32_t* out) {
  Ints acc[kTileRows];
  for (int64_t r = 0; r < row_count; ++r) acc[r] = load_raw<Ints>(start);
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t k = 0; k < quads; ++k, weight += group_bytes) {
      const Ints channels = load_raw<Ints>(weight);
      for (int j = 0; j < 4; ++j) {
        const Ints w = byte_of(channels, j);
        for (int64_t r = 0; r < row_count; ++r) acc[r] += w * int32_t(rows[t][r][4 * k + j]);
      }
    }
  }
  for (int64_t r = 0; r < row_count; ++r) store_raw(out + r * kBlockChannels, acc[r]);
}

void dot_tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t row_count,
              int64_t vectors, const int32_t* start, int32_t* acc) {
  for (int64_t v = 0; v < vectors; ++v) {
    dot_vector(rows, taps, quads, weight + v * kVectorBytes, vectors * kVectorBytes, row_count, start + v * kLanes,
               acc + v * kLanes);
  }
}

void multiply_pairs(const int16_t* a, int64_t a_stride, int64_t rows, const int16_t* b, int64_t pairs, int64_t vectors, int32_t* m,
                    bool add, Ahead) {
  for (int64_t v = 0; v < vectors * kLanes; v += kLanes) {
    Words acc[kWinogradRows];
    for (int64_t r = 0; r < rows; ++r) acc[r] = add ? load_raw<Words>(m + r * kPanel + v) : Words{};
    for (int64_t k = 0; k < pairs; ++k) {
      const Ints both = load_raw<Ints>(b + (k * kPanel + v) * 2);
      const Words even = Words((both << 16) >> 16), odd = Words(both >> 16);
      for (int64_t r = 0; r < rows; ++r) {
        acc[r] += even * uint32_t(int32_t(a[r * a_stride + 2 * k])) + odd * uint32_t(int32_t(a[r * a_stride + 2 * k + 1]));
      }
    }
    for (int64_t r = 0; r < rows; ++r) store_raw(m + r * kPanel + v, acc[r]);
  }
}

const Rates kRates = {0.9, 0.9, 1, 10, 40, 5, 1};

const Kernel kAttention = {"portable", 512, kMostKeys, 255, tile_plan, tile_pack, tile_attend};

}  // namespace

const Kernels kKernels = {"portable", kCodeOffset, conv_tasks,      conv,
                          &kWinograd, norm_splits, group_norm,      layer_norm,
                          pointwise,  &kAttention, &kSecondMoments,
                          nearest_codes, histogram,   round_with_feedback,
                          adaround_step, range_errors};

}  // namespace qdiff
