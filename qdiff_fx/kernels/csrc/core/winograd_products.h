// Transformed inputs times transformed weights. An instruction set defines `multiply_pairs`.
#pragma once

#include "core/winograd_outputs.h"
#include "core/winograd_weights.h"

namespace qdiff {
namespace {

// What is fetched meanwhile, about a line of each for every two pairs: inputs and weights of the next position.
struct Ahead {
  const char *inputs, *weights;
};

// m[row][kPanel] (+)= sum over pairs of a[row][pair] * b[pair][kPanel], both of two int16; `rows` is at most kWinogradRows, and
// of the panel `vectors` of 16 channels are computed. What is ahead is fetched, and the sums of the rows that
// come next: they lie too scattered for the processor to guess.
void multiply_pairs(const int16_t* a, int64_t a_stride, int64_t rows, const int16_t* b, int64_t pairs, int64_t vectors, int32_t* m,
                    bool add, Ahead ahead);

// A block of input channels of a chunk's tiles times those of a panel, at half of the positions. Weights that are far, beyond the
// second cache, are fetched a position ahead; others would only take the room of what is in the first.
void multiply_block(const int16_t* input, int64_t chunk, int64_t tiles, const int16_t* weights, bool far_weights, int64_t quads,
                    int64_t vectors, int32_t* products, bool add) {
  const int64_t steps = ceil_div(tiles, kWinogradRows), least = tiles / steps, longer = tiles % steps;
  const int64_t position = input_position(quads, chunk), slice = quads * 4 * kPanel / steps;
  for (int64_t at = 0; at < kHalfPositions; ++at) {
    const int16_t *from = input, *next = weights + weight_position(quads);
    int32_t* to = products;
    for (int64_t step = 0; step < steps; ++step, next += slice) {
      const int64_t rows = least + (step < longer);
      const int16_t* inputs = from + position;
      multiply_pairs(from, row_stride(quads), rows, weights, 2 * quads, vectors, to, add,
                     {reinterpret_cast<const char*>(inputs), reinterpret_cast<const char*>(far_weights ? next : inputs)});
      from += rows * row_stride(quads), to += rows * kPanel;
    }
    input += position;
    weights += weight_position(quads);
    products += product_position(chunk);
  }
}

}  // namespace
}  // namespace qdiff
