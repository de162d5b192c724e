// What an attention kernel is given and what it offers. No torch headers here: kernels are compiled with
// instruction-set flags, and inline library functions compiled that way could leak into the portable code.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qdiff {

enum class Type : int32_t { f32, f16, bf16, u8, s8 };
enum class Activation : int32_t { none, silu, gelu, gelu_tanh, geglu, relu };

// code = clamp(round(x / scale) + zero_point, low, high)
struct Quantizer {
  float scale;
  int32_t zero_point, low, high;
};

// One call. q (batch, heads, query_len, head_dim) u8, k and v (batch, heads, key_len, head_dim) s8, all with
// unit stride in head_dim; strides are in elements.
struct Attention {
  const uint8_t* q;
  const int8_t* k;
  const int8_t* v;
  const float* mask;  // additive, unit stride over keys; nullptr when there is none
  void* out;
  int64_t batch, heads, query_len, key_len, head_dim;
  int64_t q_stride[3], k_stride[3], v_stride[3], mask_stride[3], out_stride[3];  // batch, head, token
  int32_t q_zero_point;
  float score_scale;  // softmax_scale * q_scale * k_scale
  float v_scale;
  int32_t levels;  // largest probability code, 2^prob_bits - 1
  Type out_type;
  Quantizer quantizer;  // where out_type is u8 or s8
};

// Work is split in two parallel stages: pack_tasks independent tasks, then attend_tasks independent tasks.
struct Plan {
  int64_t pack_tasks;
  int64_t attend_tasks;
  int64_t attend_macs;   // multiply-adds of one attend task
  size_t packed_bytes;   // shared by all threads
  size_t scratch_bytes;  // per thread
};

// One implementation for one instruction set. Memory handed to it is 64-byte aligned.
struct Kernel {
  const char* name;
  int64_t max_head_dim;
  int64_t max_key_len;  // int32 accumulators bound it
  int32_t max_levels;
  Plan (*plan)(const Attention&);
  void (*pack)(const Attention&, uint8_t* packed, int64_t begin, int64_t end);
  void (*attend)(const Attention&, const uint8_t* packed, uint8_t* scratch, int64_t begin, int64_t end);
};

extern const Kernel kVnniAttention;

}  // namespace qdiff
