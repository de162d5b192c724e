// A convolution, from plain data to the calls of kernels: index maps, what every source needs, which algorithm, threads.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/kernels.h"
#include "core/pool.h"
#include "core/sizes.h"

namespace qdiff {

struct Window {
  int64_t kernel[2], stride[2], pad[4], dilation[2], enlarge[2];  // pad: top, bottom, left, right

  int64_t reach(int64_t out, int dim) const { return (out - 1) * stride[dim] + (kernel[dim] - 1) * dilation[dim] + 1; }
};

Window checked_window(const Sizes& kernel, const Sizes& stride, const Sizes& pad, const Sizes& dilation, const Sizes& enlarge,
                      const char* op);

// Rows and columns of the result for an image (N, C, H, W), which has so many channels with those beside it.
std::array<int64_t, 4> checked_output(const Sizes& image, int64_t channels, const Window& window, int64_t out_channels,
                                      const char* op);

// Codes (N, C, H, W), channels side by side; of each pixel 4 * ceil(C / 4) bytes can be read.
struct Image {
  const uint8_t* codes;
  int64_t channels, height, width;
  int64_t stride_n, stride_h, stride_w;
  double scale;
  int64_t zero_point;
};

// As pack_weight made them, and a scale for each of the packed channels.
struct PackedWeight {
  const int8_t* codes;
  bool nibbles;
  const float* scale;
  const int32_t* sums;
};

// What a source points to besides its codes and weights.
struct SourceMemory {
  Bytes outside, start;
  std::vector<int64_t> rows, cols;
};

// code_offset: what is subtracted from codes before they are multiplied; out: the shape (N, O, H, W) of the result.
ConvSource conv_source(int32_t code_offset, const Image& image, const PackedWeight& weight, const Window& window,
                       const Sizes& out, SourceMemory& memory);

// Which way convolutions of 3x3 are computed; the results are the same.
enum class Algorithm { cheapest, direct, winograd };
void set_convolution_algorithm(Algorithm chosen);

void run_conv(const Kernels& kernels, const Conv& conv);

}  // namespace qdiff
