// Integer kernels for AVX2.

#include "core/kernels.h"

#define QDIFF_WEIGHTS "isa/weights_avx2.h"

#include "core/adaround_step.h"
#include "core/conv.h"
#include "core/feedback.h"
#include "core/gram.h"
#include "core/histogram.h"
#include "core/nearest_codes.h"
#include "core/range_errors.h"
#include "core/norm.h"
#include "core/pointwise.h"
#include "isa/multiply_256.h"

#include "isa/attention_avx2.h"

namespace qdiff {
namespace {

QDIFF_INLINE void dot_pairs(__m256i& acc, const __m256i& x, const __m256i& y) {
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(x, y));
}

void dot_tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t row_count, int64_t vectors,
              const int32_t* start, int32_t* acc) {
  dot_panel(rows, taps, quads, {weight, kVectorBytes, vectors * kVectorBytes, 0}, row_count, vectors, start, acc);
}

const Rates kRates = {24, 42, 27, 10, 23, 3, 2};

const Kernel kAttention = {"avx2", kMostDims, kMostKeys, 255, attention_plan, attention_pack, attention_attend};

}  // namespace

const Kernels kKernels = {"avx2",     kCodeOffset, conv_tasks,      conv,
                          &kWinograd, norm_splits, group_norm,      layer_norm,
                          pointwise,  &kAttention, &kSecondMoments,
                          nearest_codes, histogram,   round_with_feedback,
                          adaround_step, range_errors};

}  // namespace qdiff
