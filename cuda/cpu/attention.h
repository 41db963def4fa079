// The kernels of attention: attention.simd.cpp; attention.cpp cuts a step into their tasks.
//
// Every (query, head) is computed in one order, whatever else is in the step. Its context is cut at absolute positions
// into spans, and those into tiles. A score is one chain of multiply-adds over head_dim; in a span, softmax(scores) V
// is accumulated position by position with the maximum so far taken out at each tile; spans are merged in ascending
// order.
#pragma once

#include <cstdint>

#include "isa.h"

namespace msgl {

/// Positions of a tile: keys and values are fetched once a tile and shared by all rows of a task.
constexpr int32_t kTile = 64;
/// Positions of a span, the unit that a short sequence's context is shared out by.
constexpr int32_t kSpan = 4 * kTile;

struct AttentionShape {
  int32_t heads, kv_heads, head_dim, page_size, cache_dtype;
  float scale;
  const void *k_cache, *v_cache;

  int32_t group() const { return heads / kv_heads; }
  /// A row of accumulators: head_dim rounded up to whole vectors of any instruction set.
  int32_t padded() const { return (head_dim + 15) / 16 * 16; }
  /// A partial result of one row: accumulators, then the maximum score and the sum of exponentials. In floats.
  int32_t partial() const { return padded() + 16; }
  /// Floats of scratch that a task of so many rows needs.
  int64_t scratch(int64_t rows) const {
    return int64_t{kTile} * (head_dim + padded() + rows) + rows * (head_dim + 2 * partial()) + 64;
  }
};

/// Consecutive queries of a sequence and the heads that share a key head; row = query * group + head in the group.
struct AttentionTask {
  const float *q;                      // [queries, heads, head_dim], at the first query and the group's first head
  float *out;                          // in the same layout
  const int32_t *pages;                // of the sequence
  int32_t kv_head, position, queries;  // position: of the first query
  int32_t span;                        // the only one to be computed, into `partials`; -1: all, into `out`
  float *partials;                     // [queries * group, partial]
};

// clang-format off
MSGL_EVERY_ISA(
void attend(const AttentionShape &shape, const AttentionTask &task, float *scratch);
/// out[head_dim] from a row's partial results, spans lying `stride` floats apart. total: scratch of shape.partial().
void merge_spans(const AttentionShape &shape, float *out, const float *partials, int32_t spans, int64_t stride,
                 float *total);
)
// clang-format on

}  // namespace msgl
