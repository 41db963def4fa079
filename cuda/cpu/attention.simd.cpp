#include "attention.h"

#include "vector.h"

namespace msgl::MSGL_ISA {

/// Accumulators of `rows` rows times this many vectors fill the registers and hide the latency of multiply-adds.
static constexpr int columns_for(int rows) {
#if defined(MSGL_ISA_avx512)
  return 4;
#else
  return rows == 1 ? 8 : rows <= 3 ? 4 : 2;
#endif
}
static constexpr int kMaxRows = 6;

#if defined(MSGL_ISA_avx2) || defined(MSGL_ISA_avx512)
/// Eight values of the cache as floats.
template <int32_t kDtype>
static inline __m256 load_eight(const void *from, int32_t index) {
  if constexpr (kDtype == MSGL_F32) return _mm256_loadu_ps(static_cast<const float *>(from) + index);
  const uint16_t *at = static_cast<const uint16_t *>(from) + index;
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i *>(at));
  if constexpr (kDtype == MSGL_F16) return _mm256_cvtph_ps(halves);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

/// keys[d][0 .. 7] = rows[0 .. 7][d] for d from `index` on, eight of them.
template <int32_t kDtype>
static inline void transpose_eight(float *keys, const void *const *rows, int32_t index) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = load_eight<kDtype>(rows[i], index);
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
      a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(keys + (index + i) * kTile, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
    _mm256_storeu_ps(keys + (index + i + 4) * kTile, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
  }
}
#endif

/// A row of the cache as floats.
template <int32_t kDtype>
static inline void widen_row(float *to, const void *from, int32_t size) {
  if constexpr (kDtype == MSGL_F32) {
    std::memcpy(to, from, size * sizeof *to);
  } else {
    const uint16_t *halves = static_cast<const uint16_t *>(from);
    int32_t i = 0;
    for (; i + kLanes <= size; i += kLanes) store(to + i, widen<kDtype>(halves + i));
    if (i == size) return;
    uint16_t tail[kLanes] = {};
    std::memcpy(tail, halves + i, (size - i) * sizeof *tail);
    store_part(to + i, widen<kDtype>(tail), size - i);
  }
}

/// Columns t .. t + 7 of the transposed key tile.
template <int32_t kDtype>
static void transpose_keys(float *keys, const void *const *rows, int32_t head_dim) {
  const int64_t element = kDtype == MSGL_F32 ? 4 : 2;
  int32_t d = 0;
#if defined(MSGL_ISA_avx2) || defined(MSGL_ISA_avx512)
  for (; d + 8 <= head_dim; d += 8) transpose_eight<kDtype>(keys, rows, d);
#endif
  for (; d < head_dim; d += kLanes) {
    const int32_t size = head_dim - d < kLanes ? head_dim - d : kLanes;
    for (int i = 0; i < 8; ++i) {
      float part[kLanes];
      widen_row<kDtype>(part, static_cast<const char *>(rows[i]) + d * element, size);
      for (int32_t j = 0; j < size; ++j) keys[(d + j) * kTile + i] = part[j];
    }
  }
}

/// A task on its way through the context.
struct Walk {
  int32_t rows, group, head_dim, padded, partial;
  float *queries;  // [rows, head_dim], scaled
  float *keys;     // [head_dim, kTile]
  float *values;   // [kTile, padded], where they cannot be used as they lie in the cache
  float *scores;   // [rows, kTile]
  float *span;     // [rows, partial]
  float *total;    // [rows, partial]
  const float *value_rows[kTile];
};

/// Fetches the keys and values of `count` positions from `begin` on.
template <int32_t kDtype>
static void fetch_tile(Walk &walk, const AttentionShape &shape, const AttentionTask &task, int32_t begin,
                       int32_t count) {
  const int64_t element = kDtype == MSGL_F32 ? 4 : 2;
  const int64_t head_bytes = shape.head_dim * element, row_bytes = shape.kv_heads * head_bytes;
  const char *k = static_cast<const char *>(shape.k_cache) + task.kv_head * head_bytes;
  const char *v = static_cast<const char *>(shape.v_cache) + task.kv_head * head_bytes;
  int32_t page = begin / shape.page_size, offset = begin % shape.page_size;
  const void *k_rows[kTile], *v_rows[kTile];
  for (int32_t t = 0; t < count; ++t) {
    const int64_t at = (int64_t{task.pages[page]} * shape.page_size + offset) * row_bytes;
    k_rows[t] = k + at;
    v_rows[t] = v + at;
    for (int64_t line = 0; line < head_bytes; line += 64) {
      __builtin_prefetch(k + at + line);
      __builtin_prefetch(v + at + line);
    }
    if (++offset == shape.page_size) offset = 0, ++page;
  }
  for (int32_t t = count; t < (count + 7) / 8 * 8; ++t) k_rows[t] = k_rows[0];  // scores of these are masked
  for (int32_t t = 0; t < count; t += 8) transpose_keys<kDtype>(walk.keys + t, k_rows + t, walk.head_dim);
  for (int32_t t = 0; t < count; ++t) {
    if (kDtype == MSGL_F32 && walk.padded == walk.head_dim) {
      walk.value_rows[t] = static_cast<const float *>(v_rows[t]);
    } else {
      float *row = walk.values + t * walk.padded;
      widen_row<kDtype>(row, v_rows[t], walk.head_dim);
      walk.value_rows[t] = row;
    }
  }
}

/// sums[r][c] += factors[r * stride] * vectors[c]. What is kept in registers is the shorter side, or they do not
/// suffice.
template <int kRows, int kColumns>
static inline void multiply_add(Floats (&sums)[kRows][kColumns], const float *factors, int64_t stride,
                                const float *vectors) {
  if constexpr (kRows <= kColumns) {
    Floats kept[kRows];
    for (int r = 0; r < kRows; ++r) kept[r] = broadcast(factors[r * stride]);
    for (int c = 0; c < kColumns; ++c) {
      const Floats vector = load(vectors + c * kLanes);
      for (int r = 0; r < kRows; ++r) sums[r][c] = fma(kept[r], vector, sums[r][c]);
    }
  } else {
    Floats kept[kColumns];
    for (int c = 0; c < kColumns; ++c) kept[c] = load(vectors + c * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Floats factor = broadcast(factors[r * stride]);
      for (int c = 0; c < kColumns; ++c) sums[r][c] = fma(factor, kept[c], sums[r][c]);
    }
  }
}

template <int kRows, int kColumns>
static void score_block(const Walk &walk, int32_t row, int32_t column) {
  Floats sums[kRows][kColumns];
  for (auto &of_row : sums) {
    for (Floats &sum : of_row) sum = broadcast(0.0f);
  }
  const int64_t head_dim = walk.head_dim;
  const float *q = walk.queries + row * head_dim, *keys = walk.keys + column * kLanes;
  for (int64_t d = 0; d < head_dim; ++d) multiply_add(sums, q + d, head_dim, keys + d * kTile);
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) store(walk.scores + (row + r) * kTile + (column + c) * kLanes, sums[r][c]);
  }
}

template <int kRows, int kColumns>
static void value_block(const Walk &walk, int32_t row, int32_t column, int32_t count) {
  Floats sums[kRows][kColumns];
  float *to = walk.span + row * walk.partial + column * kLanes;
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) sums[r][c] = load(to + r * walk.partial + c * kLanes);
  }
  const float *factors = walk.scores + row * kTile;
  for (int64_t t = 0; t < count; ++t) multiply_add(sums, factors + t, kTile, walk.value_rows[t] + column * kLanes);
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) store(to + r * walk.partial + c * kLanes, sums[r][c]);
  }
}

template <int kRows>
static void score_rows(const Walk &walk, int32_t row, int32_t count) {
  constexpr int kColumns = columns_for(kRows);
  for (int32_t column = 0; column * kLanes < count; column += kColumns) score_block<kRows, kColumns>(walk, row, column);
}

template <int kRows>
static void value_rows(const Walk &walk, int32_t row, int32_t count) {
  constexpr int kColumns = columns_for(kRows);
  const int32_t vectors = walk.padded / kLanes;
  int32_t column = 0;
  for (; column + kColumns <= vectors; column += kColumns) value_block<kRows, kColumns>(walk, row, column, count);
  for (; column < vectors; ++column) value_block<kRows, 1>(walk, row, column, count);
}

template <int kRows>
struct RowCount {
  static constexpr int value = kRows;
};

/// Calls step(RowCount<n>(), row) for blocks of kMaxRows rows, and at the end of what is left.
template <class Step>
static inline void for_blocks(int32_t from, int32_t rows, const Step &step) {
  int32_t row = from;
  for (; row + kMaxRows <= rows; row += kMaxRows) step(RowCount<kMaxRows>(), row);
  switch (rows - row) {
    case 1:
      return step(RowCount<1>(), row);
    case 2:
      return step(RowCount<2>(), row);
    case 3:
      return step(RowCount<3>(), row);
    case 4:
      return step(RowCount<4>(), row);
    case 5:
      return step(RowCount<5>(), row);
  }
}

/// Turns a row's first `limit` scores into exponentials and the rest into zeros, and takes a new maximum into account.
static void soften(const Walk &walk, int32_t row, int32_t limit, int32_t count) {
  float *scores = walk.scores + row * kTile;
  float *state = walk.span + row * walk.partial;
  float &maximum = state[walk.padded], &total = state[walk.padded + 1];
  const Floats lowest = broadcast(-__builtin_inff());
  Ints lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  Floats top = lowest;
  const int32_t vectors = (count + kLanes - 1) / kLanes;
  for (int32_t j = 0; j < vectors; ++j) {
    Floats s = load(scores + j * kLanes);
    if ((j + 1) * kLanes > limit) {
      s = lane + j * kLanes < limit ? s : lowest;
      store(scores + j * kLanes, s);
    }
    top = larger(s, top);
  }
  const float now = largest(top);
  if (now > maximum) {
    const float factor = exponential(broadcast(maximum - now))[0];
    for (int32_t d = 0; d < walk.padded; d += kLanes) store(state + d, load(state + d) * factor);
    total *= factor;
    maximum = now;
  }
  Floats sums = {};
  for (int32_t j = 0; j < vectors; ++j) {
    const Floats p = exponential(load(scores + j * kLanes) - maximum);
    sums += p;
    store(scores + j * kLanes, p);
  }
  total += sum(sums);
}

static void clear(const Walk &walk, float *state, int32_t rows) {
  std::memset(state, 0, sizeof(float) * rows * walk.partial);
  for (int32_t row = 0; row < rows; ++row) state[row * walk.partial + walk.padded] = -__builtin_inff();
}

/// total += partial, both of `padded` accumulators, a maximum and a sum.
static void merge(float *total, const float *partial, int32_t padded) {
  const float a = total[padded], b = partial[padded], top = a > b ? a : b;
  const float keep = exponential(broadcast(a - top))[0], take = exponential(broadcast(b - top))[0];
  for (int32_t d = 0; d < padded; d += kLanes) {
    store(total + d, fma(load(total + d), broadcast(keep), load(partial + d) * take));
  }
  total[padded] = top;
  total[padded + 1] = total[padded + 1] * keep + partial[padded + 1] * take;
}

static void finish(float *out, const float *total, int32_t head_dim, int32_t padded) {
  const float sum = total[padded + 1];
  for (int32_t d = 0; d < head_dim; ++d) out[d] = total[d] / sum;
}

/// One span of the context, as far as the task's queries see it; returns the first row that sees any of it.
template <int32_t kDtype>
static int32_t walk_span(Walk &walk, const AttentionShape &shape, const AttentionTask &task, int32_t span) {
  clear(walk, walk.span, walk.rows);
  const int32_t end = task.position + task.queries;
  const int32_t span_end = end < (span + 1) * kSpan ? end : (span + 1) * kSpan;
  for (int32_t begin = span * kSpan; begin < span_end; begin += kTile) {
    const int32_t count = span_end - begin < kTile ? span_end - begin : kTile;
    const int32_t first = begin > task.position ? (begin - task.position) * walk.group : 0;
    fetch_tile<kDtype>(walk, shape, task, begin, count);
    for_blocks(first, walk.rows, [&](auto block, int32_t row) { score_rows<block.value>(walk, row, count); });
    for (int32_t row = first; row < walk.rows; ++row) {
      soften(walk, row, task.position + row / walk.group - begin + 1, count);
    }
    for_blocks(first, walk.rows, [&](auto block, int32_t row) { value_rows<block.value>(walk, row, count); });
  }
  const int32_t hidden = span * kSpan - task.position;
  return hidden > 0 ? hidden * walk.group : 0;
}

template <int32_t kDtype>
static void attend_with(const AttentionShape &shape, const AttentionTask &task, float *scratch) {
  Walk walk;
  walk.group = shape.group();
  walk.rows = task.queries * walk.group;
  walk.head_dim = shape.head_dim;
  walk.padded = shape.padded();
  walk.partial = shape.partial();
  walk.keys = scratch;
  walk.values = walk.keys + kTile * walk.head_dim;
  walk.scores = walk.values + kTile * walk.padded;
  walk.total = walk.scores + kTile * walk.rows;
  walk.span = task.span >= 0 ? task.partials : walk.total + walk.rows * walk.partial;
  walk.queries = walk.total + 2 * walk.rows * walk.partial;
  if (walk.padded != walk.head_dim) std::memset(walk.values, 0, sizeof(float) * kTile * walk.padded);
  const int64_t query_stride = int64_t{shape.heads} * shape.head_dim;
  const int32_t group_size = walk.group * walk.head_dim;
  for (int32_t i = 0; i < task.queries; ++i) {
    for (int32_t d = 0; d < group_size; ++d) {
      walk.queries[i * group_size + d] = task.q[i * query_stride + d] * shape.scale;
    }
  }
  if (task.span >= 0) {
    walk_span<kDtype>(walk, shape, task, task.span);
    return;
  }
  clear(walk, walk.total, walk.rows);
  for (int32_t span = 0; span * kSpan < task.position + task.queries; ++span) {
    for (int32_t row = walk_span<kDtype>(walk, shape, task, span); row < walk.rows; ++row) {
      merge(walk.total + row * walk.partial, walk.span + row * walk.partial, walk.padded);
    }
  }
  for (int32_t row = 0; row < walk.rows; ++row) {
    finish(task.out + row / walk.group * query_stride + row % walk.group * walk.head_dim,
           walk.total + row * walk.partial, walk.head_dim, walk.padded);
  }
}

void attend(const AttentionShape &shape, const AttentionTask &task, float *scratch) {
  if (shape.cache_dtype == MSGL_F32) {
    attend_with<MSGL_F32>(shape, task, scratch);
  } else if (shape.cache_dtype == MSGL_F16) {
    attend_with<MSGL_F16>(shape, task, scratch);
  } else {
    attend_with<MSGL_BF16>(shape, task, scratch);
  }
}

void merge_spans(const AttentionShape &shape, float *out, const float *partials, int32_t spans, int64_t stride,
                 float *total) {
  const int32_t padded = shape.padded();
  std::memset(total, 0, sizeof(float) * shape.partial());
  total[padded] = -__builtin_inff();
  for (int32_t span = 0; span < spans; ++span) merge(total, partials + span * stride, padded);
  finish(out, total, shape.head_dim, padded);
}

}  // namespace msgl::MSGL_ISA
