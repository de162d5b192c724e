// Weights as they are stored, or as bytes where the tile cannot read 4-bit codes. An instruction set defines `dot_tile` and
// includes this with conv.h.
#pragma once

namespace qdiff {
namespace {

// acc[row][64] = start + sum over taps and quads of rows[tap][row] * weight; `vectors` of 16 channels are computed.
void dot_tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t row_count,
              int64_t vectors, const int32_t* start, int32_t* acc);
#if QDIFF_READS_NIBBLES
// The same of weights that are two to a byte; sums have 28 bits.
void dot_tile_of_nibbles(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t row_count,
                         int64_t vectors, const int32_t* start, int32_t* acc);
#endif

// Where the tile cannot read 4-bit codes they are unpacked into memory of the thread, block by block or all at once, and stay
// there for all the pixels the thread multiplies with them.
class Weights {
 public:
  Weights(const Conv& p, bool all_blocks) : p_(p), memory_(p, all_blocks) {}

  void choose(int64_t block) {
    memory_.choose(block, [&](int64_t each) { unpack_block(each); });
  }

  void dot(int64_t source, int64_t block, const Rows* rows, int64_t row_count, const int32_t* start, int32_t* acc) const {
    auto tile = &dot_tile;
#if QDIFF_READS_NIBBLES
    if (stay_nibbles(p_, source)) tile = &dot_tile_of_nibbles;
#endif
    const int8_t* weight = unpacks(p_, source) ? memory_.of(source, block) : stored_weights(p_, source, block);
    tile(rows, p_.kernel_h * p_.kernel_w, p_.sources[source].quads, weight, row_count, vectors_of_block(p_, block), start,
         acc);
  }

 private:
  static bool unpacks(const Conv& p, int64_t source) { return p.sources[source].nibbles && !stay_nibbles(p, source); }

  struct Bytes {
    static int64_t bytes(const Conv& p, int64_t source) {
      return unpacks(p, source) ? panel_bytes(p, source, kBlockVectors) : 0;
    }
  };

  void unpack_block(int64_t block) {
    for (int64_t i = 0; i < p_.source_count; ++i) {
      if (!unpacks(p_, i)) continue;
      const int64_t groups = p_.kernel_h * p_.kernel_w * p_.sources[i].quads;
      unpack(stored_weights(p_, i, block), groups, vectors_of_block(p_, block), memory_.of(i, block));
    }
  }

  static void unpack(const int8_t* from, int64_t groups, int64_t vectors, int8_t* to) {
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t v = 0; v < vectors; ++v, to += kVectorBytes) {
        const int8_t* pair = from + v / 2 * kVectorBytes;
        const int shift = v % 2 * 4;
        for (int64_t i = 0; i < kVectorBytes; ++i) to[i] = int8_t((((pair[i] >> shift) & 15) ^ 8) - 8);
      }
      from += nibble_bytes(vectors);
    }
  }

  const Conv& p_;
  WeightMemory<Bytes> memory_;
};

}  // namespace
}  // namespace qdiff
