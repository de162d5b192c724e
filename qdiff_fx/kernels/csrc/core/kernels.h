// What the integer kernels are given and what each instruction set offers. No torch headers here: kernels are
// compiled with instruction-set flags, and inline library functions compiled that way could leak into the
// portable code.
//
// Memory of images is channels-last: a pixel's channels lie side by side.
#pragma once

#include <cstdint>

#include "core/attention.h"

namespace qdiff {

// One quantized input of a convolution with the weights that read it. A split shortcut has several.
struct ConvSource {
  const uint8_t* codes;
  int64_t stride_n, stride_h, stride_w;  // bytes; a pixel has at least 4 * quads readable bytes
  // Source row and column of every row and column the kernel window can reach, -1 where it is padding. They
  // express strides, paddings of any mode, and nearest-neighbour upsampling, without a copy of the image.
  const int64_t* row_map;
  const int64_t* col_map;
  const uint8_t* outside;  // a pixel of zero-point codes
  int64_t quads;           // groups of four input channels
  const int8_t* weight;    // packed, see pack_weight
  bool nibbles;            // the weight has two 4-bit codes to a byte
  const float* weight_scale;
  const int32_t* start;    // (code_offset - zero_point) * sum of the weights of each output channel
  const int32_t* sums;     // of the weights of each output channel
  int32_t zero_point;
  float scale;
};

// Convolution (a linear layer is one of 1x1 over rows of pixels) with everything that follows it in one pass:
//   out = quantize(act(sum over sources + bias + shift + residual))
// geglu has twice the sources and biases, first those of the values, then those of their gates:
//   out = quantize((sum over value sources + bias + ...) * gelu(sum over gate sources + bias))
struct Conv {
  const ConvSource* sources;
  int64_t source_count;
  int64_t batch, out_h, out_w, out_channels;
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  bool depthwise;         // every channel by itself: the weights of the only source are signed bytes [tap][channel]
  const float* bias;      // per output channel; may be null
  const float* shift;     // per image and output channel; may be null
  int64_t shift_stride;
  const void* residual;   // pixels like out's; may be null
  Type residual_type;
  int64_t residual_stride;  // elements from pixel to pixel
  void* out;
  Type out_type;
  int64_t out_stride;
  Activation activation;
  Quantizer quantizer;  // where out_type is u8 or s8
};

// Some images side by side along their channels: a concat that is never made.
constexpr int64_t kMaxParts = 8;

// Group norm (groups of channels of an image) or layer norm (pixels), activation, quantizer.
struct Norm {
  const void* parts[kMaxParts];
  int64_t part_channels[kMaxParts];
  int64_t part_stride[kMaxParts];  // elements from pixel to pixel
  int64_t part_count;
  Type type;
  int64_t batch, pixels, channels, groups;
  const float* weight;  // may be null
  const float* bias;    // may be null
  double epsilon;
  Activation activation;
  void* out;
  Type out_type;
  int64_t out_stride;
  Quantizer quantizer;
};

// act(x) of rows, quantized, or what that leaves over, quantized; geglu reads 2 * channels and writes channels.
struct Pointwise {
  const void* in;
  Type type;
  int64_t rows, channels, in_stride;
  Activation activation;
  void* out;
  Type out_type;
  int64_t out_stride;
  Quantizer quantizer;
  bool of_rest;
  Quantizer rest;  // of what is left over
};

// Rows [rows][columns] whose products of any two columns are added up: total += codes' codes. Of the total, [columns][columns],
// the upper triangle is read and all of it written.
struct Gram {
  const int8_t* codes;
  int64_t rows, columns;
  int32_t* total;
};

// Rows of numbers as codes from `low` to `high`, each with a scale of its own: the one under which none clips times the
// ratio, of those that are tried, that has the least sum of |x - scale * code|^power.
struct NearestCodes {
  struct Candidate {
    float ratio, inverse;  // from 1 down
    double unit;           // ratio^power
  };

  const void* weight;
  Type type;
  int64_t rows, columns;
  int32_t low, high;
  const Candidate* tried;
  int64_t candidates;
  float power;
  float near[5];   // |e|^power is e^2 (near[0] + near[1] |e| + ... + near[4] |e|^4), |e| <= 0.5
  float* scratch;  // of each thread `scratch_numbers`: twice the columns, both as whole vectors
  int64_t scratch_numbers;
  float* scales;   // NaN of rows that hold NaN or infinity
  int8_t* codes;
};

// What quantizing numbers of a density costs under each of many grids: multiples `first` .. `last` of a scale.
// Some distributions, and as many grids for each: grid i is of distribution i / grids.
struct RangeErrors {
  const float* edges;    // of each distribution bins + 1, rising
  const float* density;  // of each distribution bins, between two of its edges each
  const int64_t* begins;  // bins before each distribution's, and all bins: [distributions + 1]
  int64_t grids;
  const float *scales, *firsts, *lasts;  // of each grid
  float power;
  float* errors;  // of each grid, the mean of |error|^power
};

// Columns of a weight as codes from `low` to `high`, the last first, each to the one nearest to
//   steps[i] + (pull[i] + sum over k > i of factor[i][k] * left[k]) / factor[i][i],   left = steps - codes
struct FeedbackRounding {
  const float* steps;   // [column][channel]
  const float* pull;    // like it
  const float* factor;  // [column][column], its upper triangle
  int64_t columns, channels;  // at most kMostFeedbackColumns columns
  float low, high;
  int8_t* codes;        // [column][channel]
  float* left;          // like it
  float* error;         // of each channel the sum of what is left of those sums, squared
};
constexpr int64_t kMostFeedbackColumns = 128;
constexpr int64_t kFeedbackChannels = 128;  // of a task

// Every `step`-th number of each row, counted on a grid of so many bins of width 2^exponent, half of them below 0.
struct Histogram {
  const void* in;
  Type type;
  int64_t rows, columns, step;
  int32_t exponent;
  int64_t bins;
  uint32_t* counts;  // of each thread kCounters * bins
};
constexpr int64_t kCounters = 4;  // of a bin, so that equal numbers do not wait for each other

// A step of Adam on V, which says how far up from `base` each weight is rounded; [rows][columns] all but the scales.
struct AdaRoundStep {
  float *up, *first, *second;  // V and the moments of its gradient
  void* weight;                // what V makes of it afterwards
  Type weight_type;
  const int8_t* base;
  const float* scales;   // of rows
  const void* gradient;  // of the loss by the weight
  Type gradient_type;
  int64_t rows, columns;
  float low, high;              // codes
  float rate, root_correction;  // both corrected for the moments' beginning at zero
  float pull, beta;             // strength and exponent of the regulariser
};

// Work shared by threads. Each begins with a part of its own, the same part of every tensor, whose data is in its cache
// from the kernel before; who is done helps the others, so that one that is held up holds up nobody else.
struct TaskPool {
  static constexpr int64_t kMaxThreads = 128;
  struct alignas(64) Part {
    int64_t next, end;
  };

  int64_t threads, grain;
  Part parts[kMaxThreads];

  void share(int64_t count) {
    for (int64_t i = 0; i < threads; ++i) parts[i] = {count * i / threads, count * (i + 1) / threads};
  }
};

// What one thread takes from it.
struct Tasks {
  TaskPool& pool;
  int64_t thread;

  bool take(int64_t& begin, int64_t& end) {
    for (int64_t i = 0; i < pool.threads; ++i) {
      TaskPool::Part& part = pool.parts[(thread + i) % pool.threads];
      begin = __atomic_fetch_add(&part.next, pool.grain, __ATOMIC_RELAXED);
      end = begin + pool.grain < part.end ? begin + pool.grain : part.end;
      if (begin < part.end) return true;
    }
    return false;
  }
};

// The same convolutions with fewer multiplications, to the same bit, where they are of 3x3 and stride 1. Memory is 64-byte
// aligned.
struct Winograd {
  // Whether it is likely to be faster.
  bool (*pays)(const Conv&, int64_t threads);
  int64_t (*shared_bytes)(const Conv&, int64_t threads);  // of all threads, for weights that are made before they are multiplied
  int64_t (*thread_bytes)(const Conv&, int64_t threads);  // of each thread
  int64_t (*weight_tasks)(const Conv&, int64_t threads);  // none, or `make_weights` comes first
  int64_t (*tasks)(const Conv&, int64_t threads);
  void (*make_weights)(const Conv&, void* shared, Tasks&);
  void (*multiply)(const Conv&, void* shared, void* of_thread, int64_t threads, Tasks&);
};

// A Gram run by run: some of its rows are brought into the order of the tile, then multiplied. Memory is 64-byte aligned.
struct SecondMoments {
  int64_t (*runs)(const Gram&);
  int64_t (*bytes)(const Gram&);
  int64_t (*pack_tasks)(const Gram&);
  void (*pack)(const Gram&, int64_t run, void* memory, Tasks&);
  int64_t (*tasks)(const Gram&);
  void (*multiply)(const Gram&, int64_t run, void* memory, Tasks&);
};

// One implementation of everything for one instruction set. What takes Tasks is called by every thread at once.
struct Kernels {
  const char* name;
  int32_t code_offset;  // what this instruction set subtracts from codes before it multiplies

  // Tasks are numbered 0 .. conv_tasks; each writes its own part of the output.
  int64_t (*conv_tasks)(const Conv&);
  void (*conv)(const Conv&, Tasks&);
  const Winograd* winograd;

  // Tasks of a group norm are batch * splits.
  int64_t (*norm_splits)(const Norm&, int64_t threads);
  void (*group_norm)(const Norm&, int64_t splits, Tasks&);
  void (*layer_norm)(const Norm&, Tasks&);       // a task is a row
  void (*pointwise)(const Pointwise&, Tasks&);  // a task is a row
  const Kernel* attention;
  const SecondMoments* second_moments;

  void (*nearest_codes)(const NearestCodes&, Tasks&);  // a task is a row
  // A task is so many of the numbers that are counted.
  void (*histogram)(const Histogram&, Tasks&);
  void (*round_with_feedback)(const FeedbackRounding&, Tasks&);  // a task is so many channels
  void (*adaround_step)(const AdaRoundStep&, Tasks&);  // a task is a row
  void (*range_errors)(const RangeErrors&, Tasks&);  // a task is a grid
};

constexpr int64_t kHistogramTask = 1 << 14;
inline int64_t counted_columns(const Histogram& p) { return (p.columns + p.step - 1) / p.step; }
inline int64_t histogram_tasks_of_row(const Histogram& p) { return (counted_columns(p) + kHistogramTask - 1) / kHistogramTask; }

constexpr int64_t kMaxTaps = 1024;  // kernel_h * kernel_w

// Packed weights are [block of 64 channels][tap][quad][<= 4 vectors][16 channels][4] signed bytes. Of nibbles, vectors come
// in pairs, the first in the low ones, the second in the high ones, empty where a block has an odd number.
constexpr int64_t kLanes = 16;
constexpr int64_t kBlockVectors = 4;
constexpr int64_t kBlockChannels = kLanes * kBlockVectors;
constexpr int64_t kVectorBytes = kLanes * 4;

struct Divided {
  int64_t quotient, rest;
};

// Of numbers that are not negative. Where both fit into 32 bits so are they divided: on many processors that takes a fraction of
// the time, which counts where it is done for every few pixels.
inline Divided divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return {uint32_t(a) / uint32_t(b), uint32_t(a) % uint32_t(b)};
  return {a / b, a % b};
}

// Where the `at`-th is, of the pixels, or tiles, of images of that width and height.
struct Position {
  int64_t x, y, n;

  Position(int64_t at, int64_t width, int64_t height) {
    const Divided line = divide(at, width), image = divide(line.quotient, height);
    x = line.rest, y = image.rest, n = image.quotient;
  }

  // So many further, without a division.
  void advance(int64_t count, int64_t width, int64_t height) {
    for (x += count; x >= width; x -= width) {
      if (++y == height) y = 0, ++n;
    }
  }
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t packed_channels(int64_t out_channels) { return ceil_div(out_channels, kLanes) * kLanes; }
inline int64_t nibble_bytes(int64_t vectors) { return ceil_div(vectors, 2) * kVectorBytes; }
// Bytes of a quad of every output channel.
inline int64_t quad_bytes(int64_t out_channels, bool nibbles) {
  const int64_t vectors = ceil_div(out_channels, kLanes);
  return nibbles ? nibble_bytes(vectors) : vectors * kVectorBytes;
}

// codes: (out_channels, in_channels, taps) with the strides given; sums: [packed_channels].
void pack_weight(const int8_t* codes, int64_t out_channels, int64_t in_channels, int64_t taps, const int64_t* strides,
                 bool nibbles, int8_t* packed, int32_t* sums, int64_t begin_block, int64_t end_block);

// Those of the instruction set this library is built for; one source of each set defines them.
extern const Kernels kKernels;

}  // namespace qdiff
