// 3x3 convolutions of stride 1 with a quarter of the multiplications, to the same integer: Winograd's F(4x4, 3x3) modulo 2^32.
//
// Y = A' [(G g G') . (B' d B)] A over tiles of 4x4 results (Lavin and Gray, "Fast Algorithms for Convolutional Neural
// Networks", arXiv 1509.09308, for the points 0, 1, -1, 2, -2 and infinity). Made exact:
// - Codes less 128 keep B' d B within 16 bits, and so do weights of 8 bits G g G' once the fractions of G are left out.
// - The 36 products of int16 matrices are summed in 32 bits, which may wrap: everything is arithmetic modulo 2^32.
// - What was left out of G is made up for in the output transform, whose result is 576 times the sum, modulo 2^32. Times the
//   inverse of 9, and shifted right by 6 places, it is the sum itself, as long as that lies within [-2^25, 2^25). Where the
//   weights would allow more, the input channels are cut into parts, each with an output transform of its own.
//
// An instruction set includes this after conv.h and defines `multiply_pairs` and `kRates`.
// The steps have files of their own: transforms, plan, inputs, weights, outputs, products, order.
#pragma once

#include "core/winograd_order.h"

namespace qdiff {
namespace {

// What an instruction set takes for each step: multiply-adds per cycle of the direct convolution and of the products, cycles
// per transformed weight, input and result (the latter beyond what the direct convolution takes), and how many vectors of sums
// have to be under way for a multiply-add not to wait for another.
struct Rates {
  double direct, direct_nibbles, product, weight, input, output, sums_in_flight;
};

extern const Rates kRates;

int64_t winograd_tasks(const Conv& p, int64_t threads) { return WinogradPlan(p, threads).tasks(); }

int64_t winograd_thread_bytes(const Conv& p, int64_t threads) { return WinogradMemory(p, WinogradPlan(p, threads), nullptr).bytes; }

int64_t winograd_shared_bytes(const Conv& p, int64_t threads) {
  return WinogradPlan(p, threads).shares_weights ? weight_elements(p) * int64_t(sizeof(int16_t)) : 0;
}

int64_t winograd_weight_tasks(const Conv& p, int64_t threads) {
  const WinogradPlan plan(p, threads);
  return plan.shares_weights ? plan.panels * block_count(p) : 0;
}

void winograd_weights(const Conv& p, void* shared, Tasks& tasks) {
  const SharedWeights weights(p, shared);
  int64_t begin, end;
  while (tasks.take(begin, end)) {
    for (int64_t task = begin; task < end; ++task) weights.make(task);
  }
}

void winograd(const Conv& p, void* shared, void* of_thread, int64_t threads, Tasks& tasks) {
  const SharedWeights weights(p, shared);
  const WinogradPlan plan(p, threads);
  const WinogradMemory memory(p, plan, of_thread);
  int64_t begin, end;
  while (tasks.take(begin, end)) {
    for (int64_t task = begin; task < end; ++task) WinogradTask(p, plan, weights, memory, task).run();
  }
}

// ------------------------------------------------------------------------------------------------- what it costs

// Cycles of one core by either way, from rates measured for the instruction set (benchmarks/kernels/bench_winograd.py).
bool winograd_pays(const Conv& p, int64_t threads) {
  const WinogradPlan plan(p, threads);
  const double outputs = double(ceil_div(p.out_channels, kLanes) * kLanes), tiles = double(plan.tiles);
  const double results = double(p.batch) * double(p.out_h) * double(p.out_w) * outputs;
  // Sums of few rows and vectors wait for each other.
  const double rows = std::min<double>(kWinogradRows, tiles), vectors = std::min<double>(kBlockVectors, outputs / kLanes);
  const double full = std::min(1.0, rows * vectors / kRates.sums_in_flight);
  double direct = 0, products = 0, weights = 0, inputs = 0;
  for (int64_t i = 0; i < p.source_count; ++i) {
    const double channels = double(p.sources[i].quads * 4);
    direct += results * channels * 9 / (p.sources[i].nibbles ? kRates.direct_nibbles : kRates.direct);
    products += kPositions * tiles * channels * outputs / (kRates.product * full);
    // Reading shared ones takes up to half as long as making them, writing them another time.
    weights += kRates.weight * channels * outputs * (plan.shares_weights ? 2 + double(plan.chunks) / 2 : double(plan.chunks));
    inputs += kRates.input * tiles * channels * double(plan.keeps_inputs ? plan.shares : ceil_div(plan.panels, plan.group));
  }
  const double sums = kRates.output * kOutputs * kOutputs * tiles * outputs * double(p.source_count);
  const double tasks = double(plan.tasks()), rounds = double(ceil_div(plan.tasks(), threads));
  return (inputs + products + weights + sums) * rounds / tasks < 0.95 * direct / double(threads);
}

const Winograd kWinograd = {winograd_pays,  winograd_shared_bytes, winograd_thread_bytes, winograd_weight_tasks,
                            winograd_tasks, winograd_weights,      winograd};

}  // namespace
}  // namespace qdiff
