// Integer kernels for AVX-512 VNNI.

#include "kernels.h"

#include "avx512.h"
#include "conv.h"
#include "norm.h"
#include "pointwise.h"

namespace qdiff {
namespace {

// Kept apart from the code around it, so all 32 registers are its own.
template <int R, int V>
__attribute__((noinline)) void tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight,
                                    const int32_t* start, int32_t* out) {
  __m512i acc[R][V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) acc[r][v] = _mm512_loadu_si512(start + v * kLanes);
  }
  for (int64_t t = 0; t < taps; ++t) {
    const uint8_t* from[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) from[r] = rows[t][r];
    for (int64_t k = 0; k < quads; ++k) {
      __m512i operand[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) operand[v] = _mm512_loadu_si512(weight + v * 64);
      weight += V * 64;
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const __m512i quad = broadcast_quad(from[r] + 4 * k);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) dot_accumulate(acc[r][v], quad, operand[v]);
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) _mm512_storeu_si512(out + r * kBlockChannels + v * kLanes, acc[r][v]);
  }
}

template <int R>
QDIFF_INLINE void tile_of(int64_t vectors, const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight,
                          const int32_t* start, int32_t* out) {
  switch (vectors) {
    case 1: return tile<R, 1>(rows, taps, quads, weight, start, out);
    case 2: return tile<R, 2>(rows, taps, quads, weight, start, out);
    case 3: return tile<R, 3>(rows, taps, quads, weight, start, out);
    default: return tile<R, 4>(rows, taps, quads, weight, start, out);
  }
}

void dot_tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t row_count,
              int64_t vectors, const int32_t* start, int32_t* acc) {
  switch (row_count) {
    case 1: return tile_of<1>(vectors, rows, taps, quads, weight, start, acc);
    case 2: return tile_of<2>(vectors, rows, taps, quads, weight, start, acc);
    case 3: return tile_of<3>(vectors, rows, taps, quads, weight, start, acc);
    case 4: return tile_of<4>(vectors, rows, taps, quads, weight, start, acc);
    case 5: return tile_of<5>(vectors, rows, taps, quads, weight, start, acc);
    default: return tile_of<6>(vectors, rows, taps, quads, weight, start, acc);
  }
}

}  // namespace

const Kernels kKernels = {"avx512_vnni", kCodeOffset, conv_tasks, conv,           norm_splits,
                          group_norm,    layer_norm,  pointwise,  &kVnniAttention};

}  // namespace qdiff
