// Integer kernels for AVX2.

#include "kernels.h"

#define QDIFF_WEIGHTS "weights_avx2.h"

#include "conv.h"
#include "norm.h"
#include "pointwise.h"

#include "attention_avx2.h"

namespace qdiff {
namespace {

const Kernel kAttention = {"avx2", kMostDims, kMostKeys, 255, attention_plan, attention_pack, attention_attend};

}  // namespace

const Kernels kKernels = {"avx2",     kCodeOffset, conv_tasks, conv,       norm_splits,
                          group_norm, layer_norm,  pointwise,  &kAttention};

}  // namespace qdiff
