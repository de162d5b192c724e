// X'X of rows of signed bytes, on the dot-product tile. An instruction set includes this after conv.h and defines `dot_tile`.
//
// The tile multiplies unsigned bytes by signed ones: the left columns are x + 128, and 128 times the sum of each right column
// is taken off again, which is where the tile's sums start. Of the symmetric result the upper triangle is computed.
#pragma once

#include "core/conv.h"

namespace qdiff {
namespace {

// acc[row][64] = start + sum over taps and quads of rows[tap][row] * weight, which are packed; `vectors` of 16 columns.
void dot_tile(const Rows* rows, int64_t taps, int64_t quads, const int8_t* weight, int64_t row_count, int64_t vectors,
              const int32_t* start, int32_t* acc);

constexpr int64_t kPanelColumns = kBlockChannels;               // right columns of a task
constexpr int64_t kLeftColumns = kPanelColumns * kTileRows;     // left ones: their codes stay in L2 from panel to panel
constexpr int64_t kGroupRows = 16;                              // brought into the tile's order at once
constexpr int64_t kGramBytes = int64_t{32} << 20;               // of codes in that order that there are at a time

// The rows of one call, some at a time, and where they lie: panels [column / 64][quad of rows][64 columns][4], each behind
// where its sums start, then columns [column][row].
struct GramPlan {
  int64_t panels, run, groups;  // rows of a run, in groups
  int64_t panel_bytes, column_bytes, columns_at;

  explicit GramPlan(const Gram& p) {
    panels = ceil_div(p.columns, kPanelColumns);
    const int64_t most = std::max<int64_t>(kGroupRows, kGramBytes / (2 * panels * kPanelColumns) / kGroupRows * kGroupRows);
    const int64_t runs = std::max<int64_t>(1, ceil_div(p.rows, most));
    groups = std::max<int64_t>(1, ceil_div(ceil_div(p.rows, runs), kGroupRows));  // of no rows there are zeros, too
    run = groups * kGroupRows;
    panel_bytes = kPanelColumns * (run + int64_t{sizeof(int32_t)});
    column_bytes = (ceil_div(run, 64) | 1) * 64;  // an odd number of lines: others would crowd into few sets of a cache
    columns_at = panels * panel_bytes;
  }

  int64_t runs(const Gram& p) const { return std::max<int64_t>(1, ceil_div(p.rows, run)); }
  int64_t bytes() const { return columns_at + panels * kPanelColumns * column_bytes; }
  int64_t quads() const { return run / 4; }
  int32_t* start(void* memory, int64_t panel) const {
    return reinterpret_cast<int32_t*>(static_cast<int8_t*>(memory) + panel * panel_bytes);
  }
  int8_t* codes(void* memory, int64_t panel) const {
    return static_cast<int8_t*>(memory) + panel * panel_bytes + kPanelColumns * int64_t{sizeof(int32_t)};
  }
  uint8_t* column(void* memory, int64_t at) const {
    return static_cast<uint8_t*>(memory) + columns_at + at * column_bytes;
  }
};

int64_t gram_runs(const Gram& p) { return GramPlan(p).runs(p); }
int64_t gram_bytes(const Gram& p) { return GramPlan(p).bytes(); }
int64_t gram_pack_tasks(const Gram& p) { return GramPlan(p).panels; }

// Sixteen rows of sixteen columns, in both orders; `apart` is from quad to quad and from column to column.
QDIFF_INLINE void reorder(const int8_t* rows, int64_t stride, int8_t* quads, int64_t quads_apart, uint8_t* columns,
                          int64_t columns_apart) {
  const auto* from = reinterpret_cast<const uint8_t*>(rows);
  for (int64_t q = 0; q < kGroupRows / 4; ++q, from += 4 * stride, quads += quads_apart, columns += 4) {
    uint32_t quad[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      quad[i] = from[i] | uint32_t{from[stride + i]} << 8 | uint32_t{from[2 * stride + i]} << 16 | uint32_t{from[3 * stride + i]} << 24;
    }
    std::memcpy(quads, quad, sizeof(quad));
    for (int64_t i = 0; i < kLanes; ++i) {
      quad[i] ^= 0x80808080u;
      std::memcpy(columns + i * columns_apart, &quad[i], sizeof(quad[i]));
    }
  }
}

// The same where some of them are not there, which count as zeros.
void reorder_some(const int8_t* rows, int64_t stride, int64_t row_count, int64_t column_count, int8_t* quads, int64_t quads_apart,
                  uint8_t* columns, int64_t columns_apart) {
  int8_t all[kGroupRows * kLanes] = {};
  for (int64_t r = 0; r < row_count; ++r) std::memcpy(all + r * kLanes, rows + r * stride, size_t(column_count));
  reorder(all, kLanes, quads, quads_apart, columns, columns_apart);
}

// Rows are too far apart for the processor to see them coming.
QDIFF_INLINE void fetch_rows(const Gram& p, int64_t row, int64_t column) {
  const int64_t end = std::min(row + kGroupRows, p.rows);
  for (; row < end; ++row) __builtin_prefetch(p.codes + row * p.columns + column);
}

void pack_panel(const Gram& p, const GramPlan& plan, int64_t run, int64_t panel, void* memory) {
  const int64_t first = panel * kPanelColumns, first_row = run * plan.run, rest = p.columns - first;
  const int64_t vectors = ceil_div(std::min(rest, kPanelColumns), kLanes), quads_apart = vectors * kVectorBytes;
  for (int64_t group = 0; group < plan.groups; ++group) {
    const int64_t row = first_row + group * kGroupRows, rows = std::clamp<int64_t>(p.rows - row, 0, kGroupRows);
    fetch_rows(p, row + 2 * kGroupRows, first);
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t column = first + v * kLanes, columns = std::min(kLanes, p.columns - column);
      const int8_t* from = p.codes + row * p.columns + column;
      int8_t* quads = plan.codes(memory, panel) + group * (kGroupRows / 4) * quads_apart + v * kVectorBytes;
      uint8_t* to = plan.column(memory, column) + group * kGroupRows;
      if (rows == kGroupRows && columns == kLanes) {
        reorder(from, p.columns, quads, quads_apart, to, plan.column_bytes);
      } else {
        reorder_some(from, p.columns, rows, columns, quads, quads_apart, to, plan.column_bytes);
      }
    }
  }
  for (int64_t i = 0; i < vectors * kLanes; ++i) {
    const uint8_t* column = plan.column(memory, first + i);
    int32_t sum = 0;
    for (int64_t r = 0; r < plan.run; ++r) sum += int32_t(column[r]) - 128;
    plan.start(memory, panel)[i] = (kCodeOffset - 128) * sum;
  }
}

void gram_pack(const Gram& p, int64_t run, void* memory, Tasks& tasks) {
  const GramPlan plan(p);
  int64_t begin, end;
  while (tasks.take(begin, end)) {
    for (int64_t panel = begin; panel < end; ++panel) pack_panel(p, plan, run, panel, memory);
  }
}

// A task is a panel times a block of left columns none of which is behind the panel's last.
int64_t gram_tasks(const Gram& p) {
  const int64_t panels = GramPlan(p).panels;
  int64_t count = 0;
  for (int64_t panel = 0; panel < panels; panel += kTileRows) count += panels - panel;
  return count;
}

// total[row][first ..] += sums, from the diagonal on.
QDIFF_INLINE void add_row(const Gram& p, int64_t row, int64_t first, int64_t count, const int32_t* sums) {
  uint32_t* to = reinterpret_cast<uint32_t*>(p.total) + row * p.columns + first;
  for (int64_t i = std::max<int64_t>(0, row - first); i < count; ++i) to[i] += uint32_t(sums[i]);
}

// The lower triangle is written from the upper one, as far as this block goes.
void mirror(const Gram& p, int64_t begin, int64_t end, int64_t first, int64_t count) {
  for (int64_t some = begin; some < end; some += kLanes) {
    const int64_t last = std::min(some + kLanes, end);
    for (int64_t column = first; column < first + count; ++column) {
      int32_t* to = p.total + column * p.columns;
      for (int64_t row = some; row < std::min(last, column); ++row) to[row] = p.total[row * p.columns + column];
    }
  }
}

void multiply_panel(const Gram& p, const GramPlan& plan, int64_t left, int64_t panel, bool last, void* memory) {
  const int64_t first = panel * kPanelColumns, count = std::min(kPanelColumns, p.columns - first);
  const int64_t end = std::min(left + kLeftColumns, first + count);
  alignas(64) int32_t acc[kTileRows * kBlockChannels];
  for (int64_t row = left; row < end; row += kTileRows) {
    const int64_t rows = std::min(kTileRows, end - row);
    Rows columns{};
    for (int64_t r = 0; r < rows; ++r) {
      columns[r] = plan.column(memory, row + r);
      const int32_t* to = p.total + (row + r) * p.columns + first;
      for (int64_t i = 0; i < count; i += kLanes) __builtin_prefetch(to + i, 1);
    }
    dot_tile(&columns, 1, plan.quads(), plan.codes(memory, panel), rows, ceil_div(count, kLanes), plan.start(memory, panel), acc);
    for (int64_t r = 0; r < rows; ++r) add_row(p, row + r, first, count, acc + r * kBlockChannels);
  }
  if (last) mirror(p, left, end, first, count);
}

void gram_multiply(const Gram& p, int64_t run, void* memory, Tasks& tasks) {
  const GramPlan plan(p);
  int64_t begin, end;
  while (tasks.take(begin, end)) {
    for (int64_t task = begin; task < end; ++task) {
      int64_t block = 0, at = task;
      for (; at >= plan.panels - block * kTileRows; ++block) at -= plan.panels - block * kTileRows;
      multiply_panel(p, plan, block * kLeftColumns, block * kTileRows + at, run + 1 == plan.runs(p), memory);
    }
  }
}

const SecondMoments kSecondMoments = {gram_runs, gram_bytes, gram_pack_tasks, gram_pack, gram_tasks, gram_multiply};

}  // namespace
}  // namespace qdiff
