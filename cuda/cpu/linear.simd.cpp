// Two ways, which give the same bits. Few rows of x: weights are decoded in registers and used there. More rows: a
// slice of a panel is decoded to floats that stay in the first-level cache, and tiles of rows are multiplied with it.
#include "linear.h"

#include "codec.h"

namespace msgl::MSGL_ISA {

// How many panels stand side by side, so that there are enough chains to hide the latency of one and yet all sums stay
// in registers: for one row, for the other few, and in a tile of many.
#if defined(MSGL_ISA_avx512)
constexpr int kOneRowPanels = 4, kFewRowsPanels = 4, kTilePanels = 2, kTileRows = 12;
#elif defined(MSGL_ISA_avx2)
constexpr int kOneRowPanels = 2, kFewRowsPanels = 1, kTilePanels = 1, kTileRows = 6;
#else
constexpr int kOneRowPanels = 2, kFewRowsPanels = 1, kTilePanels = 1, kTileRows = 6;
#endif
constexpr int kDepth = 288;  // columns of a panel that are decoded at a time

// One rounding on every machine, also where the C library has to make it.
#if defined(MSGL_ISA_portable) && !defined(__FP_FAST_FMAF)
[[gnu::noinline]] static Floats exact_fma(Floats a, Floats b, Floats c) {
  Floats result;
  for (int i = 0; i < kLanes; ++i) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return result;
}
#else
static inline Floats exact_fma(Floats a, Floats b, Floats c) { return fma(a, b, c); }
#endif

static inline Floats load_some(const float *from, int64_t count) {
  if (count >= kLanes) return load(from);
  return load_part(from, count < 0 ? 0 : count);
}

static inline void store_some(float *to, Floats lanes, int64_t count) {
  if (count >= kLanes) {
    store(to, lanes);
  } else if (count > 0) {
    store_part(to, lanes, count);
  }
}

/// Writes kRows x kColumns registers of sums to out, of which `columns` columns exist. Inlined, for else the sums were
/// in memory.
template <int kRows, int kColumns>
MSGL_INLINE static inline void put(Floats (&sums)[kRows][kColumns], float *out, int64_t stride, int64_t columns,
                       const float *bias) {
  unroll<kColumns>([&](auto c) MSGL_INLINE {
    const int64_t left = columns - c * kLanes;
    const Floats add = bias == nullptr ? Floats{} : load_some(bias + c * kLanes, left);
    unroll<kRows>([&](auto r) MSGL_INLINE {
      store_some(out + r * stride + c * kLanes, bias == nullptr ? sums[r][c] : sums[r][c] + add, left);
    });
  });
}

// ---- few rows ------------------------------------------------------------------------------------------------------

/// The rows that are multiplied together; where scales take registers there is room for fewer.
template <int kDtype>
constexpr int kFewRows = kDtype <= MSGL_BF16 ? 6 : 4;

/// kRows rows of x from `row` on times the kPanels panels from `panel` on.
template <int kDtype, int kPanels, int kRows>
static void fused(const PanelProduct &p, int64_t row, int64_t panel) {
  using C = Codec<kDtype>;
  constexpr int kColumns = kPanels * kVectors;
  const uint8_t *panels = p.panels + panel * p.panel_bytes;
  Floats sums[kRows][kColumns] = {};
  const auto step = [&](int64_t run, int s, const typename C::Scales *scales, auto count) MSGL_INLINE {
    typename C::Raw raw[kColumns];
    unroll<kColumns>([&](auto c) MSGL_INLINE {
      raw[c] = C::raw(panels + c / kVectors * p.panel_bytes, run, s, c % kVectors);
    });
    const float *x = p.x + row * p.k + run * C::kRun + s * C::kStep;
    unroll<count>([&](auto j) MSGL_INLINE {
      if constexpr (kRows == 1) {
        const Floats value = broadcast(x[j]);
        unroll<kColumns>([&](auto c) MSGL_INLINE {
          sums[0][c] = exact_fma(value, C::value(raw[c], scales[c], j), sums[0][c]);
        });
      } else {
        Floats w[kColumns];
        unroll<kColumns>([&](auto c) MSGL_INLINE { w[c] = C::value(raw[c], scales[c], j); });
        unroll<kRows>([&](auto r) MSGL_INLINE {
          const Floats value = broadcast(x[r * p.k + j]);
          unroll<kColumns>([&](auto c) MSGL_INLINE { sums[r][c] = exact_fma(value, w[c], sums[r][c]); });
        });
      }
    });
  };
  const int64_t runs = p.k / C::kRun, bytes = p.panel_bytes * C::kRun / p.k;
  for (int64_t run = 0; run < runs; ++run) {
    typename C::Scales scales[kColumns];
    unroll<kColumns>([&](auto c) MSGL_INLINE {
      scales[c] = C::scales(panels + c / kVectors * p.panel_bytes, run, c % kVectors);
    });
    for (int64_t i = run * bytes; i < (run + 1) * bytes; i += 64) {
      for (int c = 0; c < kPanels; ++c) __builtin_prefetch(panels + (kPanels + c) * p.panel_bytes + i, 0, 2);
    }
    unroll<C::kRun / C::kStep>([&](auto s) MSGL_INLINE {
      if constexpr (kRows > 2) {
        for (int c = 0; c < kColumns; ++c) keep_in_memory(scales[c]);
      }
      step(run, s, scales, Constant<C::kStep>());
    });
  }
  const typename C::Scales none[kColumns] = {};  // only floats have columns past the last whole run
  int64_t rest = p.k % C::kRun;
  int s = 0;
  for (; rest >= C::kStep; ++s, rest -= C::kStep) step(runs, s, none, Constant<C::kStep>());
  if (rest > 0) step(runs, s, none, Constant<1>());
  const int64_t column = panel * kPanelRows;
  put(sums, p.out + row * p.out_stride + column, p.out_stride, p.columns - column,
      p.bias == nullptr ? nullptr : p.bias + column);
}

template <int kDtype, int kPanels, int kRows = kFewRows<kDtype>>
static void fused_of(int64_t rows, const PanelProduct &p, int64_t row, int64_t panel) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return fused_of<kDtype, kPanels, kRows - 1>(rows, p, row, panel);
  }
  fused<kDtype, kPanels, kRows>(p, row, panel);
}

template <int kDtype>
static void multiply_few(const PanelProduct &p) {
  const int64_t count = (p.columns + kPanelRows - 1) / kPanelRows;
  int64_t panel = 0;
  if (p.rows == 1) {
    for (; panel + kOneRowPanels <= count; panel += kOneRowPanels) fused<kDtype, kOneRowPanels, 1>(p, 0, panel);
  }
  const int32_t tiles = (p.rows + kFewRows<kDtype> - 1) / kFewRows<kDtype>;
  while (panel < count) {
    const bool wide = panel + kFewRowsPanels <= count;
    for (int32_t i = 0, row = 0; i < tiles; ++i) {
      const int32_t end = p.rows * (i + 1) / tiles;
      if (wide) {
        fused_of<kDtype, kFewRowsPanels>(end - row, p, row, panel);
      } else {
        fused_of<kDtype, 1>(end - row, p, row, panel);
      }
      row = end;
    }
    panel += wide ? kFewRowsPanels : 1;
  }
}

// ---- many rows -----------------------------------------------------------------------------------------------------

/// Columns `from` to `from + count` of a panel as floats [count][16]; `from` starts a run.
template <int kDtype>
static void decode(const uint8_t *panel, int64_t from, int64_t count, float *floats) {
  using C = Codec<kDtype>;
  for (int64_t column = 0; column < count; column += C::kRun, floats += C::kRun * kPanelRows) {
    const int64_t run = (from + column) / C::kRun, left = count - column;
    unroll<kVectors>([&](auto v) MSGL_INLINE {
      const typename C::Scales scales = C::scales(panel, run, v);
#pragma GCC unroll 16
      for (int s = 0; s < C::kRun / C::kStep; ++s) {
        if (left < C::kRun && s * C::kStep >= left) break;
        const typename C::Raw raw = C::raw(panel, run, s, v);
        float *to = floats + s * C::kStep * kPanelRows + v * kLanes;
        unroll<C::kStep>([&](auto j) MSGL_INLINE { store(to + j * kPanelRows, C::value(raw, scales, j)); });
      }
    });
  }
}

/// A slice of the columns of x and of the weight.
struct Slice {
  const float *x;
  int64_t x_stride, depth;
  const float *panels[kTilePanels];
  bool first;  // start from 0, not from what is in out
};

/// kRows rows of x times kPanels panels, added to out.
template <int kRows, int kPanels>
static void tile(const Slice &slice, float *out, int64_t stride, int64_t columns, const float *bias) {
  constexpr int kColumns = kPanels * kVectors;
  Floats sums[kRows][kColumns];
  unroll<kRows>([&](auto r) MSGL_INLINE {
    unroll<kColumns>([&](auto c) MSGL_INLINE {
      sums[r][c] = slice.first ? Floats{} : load_some(out + r * stride + c * kLanes, columns - c * kLanes);
    });
  });
  const float *x = slice.x;
  for (int64_t i = 0; i < slice.depth; ++i, ++x) {
    Floats w[kColumns];
    unroll<kColumns>([&](auto c) MSGL_INLINE {
      w[c] = load(slice.panels[c / kVectors] + i * kPanelRows + c % kVectors * kLanes);
    });
    unroll<kRows>([&](auto r) MSGL_INLINE {
      const Floats value = broadcast(x[r * slice.x_stride]);
      unroll<kColumns>([&](auto c) MSGL_INLINE { sums[r][c] = exact_fma(value, w[c], sums[r][c]); });
    });
  }
  put(sums, out, stride, columns, bias);
}

template <int kPanels, int kRows = kTileRows>
static void tile_of(int rows, const Slice &slice, float *out, int64_t stride, int64_t columns, const float *bias) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile_of<kPanels, kRows - 1>(rows, slice, out, stride, columns, bias);
  }
  tile<kRows, kPanels>(slice, out, stride, columns, bias);
}

/// All rows times the kPanels panels from `panel` on, for one slice, in tiles of about the same height.
template <int kDtype, int kPanels>
static void multiply_slice(const PanelProduct &p, int64_t panel, int64_t from, int64_t depth) {
  alignas(64) float floats[kDtype == MSGL_F32 ? 1 : kPanels * kDepth * kPanelRows];
  Slice slice{p.x + from, p.k, depth, {}, from == 0};
  for (int i = 0; i < kPanels; ++i) {
    const uint8_t *packed = p.panels + (panel + i) * p.panel_bytes;
    if constexpr (kDtype == MSGL_F32) {
      slice.panels[i] = reinterpret_cast<const float *>(packed) + from * kPanelRows;
    } else {
      slice.panels[i] = floats + i * kDepth * kPanelRows;
      decode<kDtype>(packed, from, depth, floats + i * kDepth * kPanelRows);
    }
  }
  const int64_t column = panel * kPanelRows;
  const float *bias = p.bias != nullptr && from + depth == p.k ? p.bias + column : nullptr;
  const int32_t tiles = (p.rows + kTileRows - 1) / kTileRows;
  for (int32_t i = 0, row = 0; i < tiles; ++i) {
    const int32_t end = static_cast<int32_t>(int64_t{p.rows} * (i + 1) / tiles);
    slice.x = p.x + row * p.k + from;
    float *out = p.out + row * p.out_stride + column;
    tile_of<kPanels>(end - row, slice, out, p.out_stride, p.columns - column, bias);
    row = end;
  }
}

/// Asks for what multiply_slice reads of a panel, while there is still something else to compute.
static void prefetch_slice(const PanelProduct &p, int64_t panel, int64_t from, int64_t depth) {
  const uint8_t *packed = p.panels + panel * p.panel_bytes;
  const int64_t begin = from * p.panel_bytes / p.k, end = (from + depth) * p.panel_bytes / p.k;
  for (int64_t i = begin; i < end; i += 64) __builtin_prefetch(packed + i);
}

template <int kDtype>
static void multiply_many(const PanelProduct &p) {
  const int64_t count = (p.columns + kPanelRows - 1) / kPanelRows, slices = (p.k + kDepth - 1) / kDepth;
  // All of few rows stay in the cache, so the weight is read as it lies; of many rows a slice does.
  const bool panel_by_panel = p.rows * p.k <= 65536;
  const int64_t groups = count / kTilePanels + count % kTilePanels;
  for (int64_t i = 0; i < groups * slices; ++i) {
    const auto place = [&](int64_t index, int64_t *panel, int64_t *from) {
      const int64_t group = panel_by_panel ? index / slices : index % groups;
      *panel = group < count / kTilePanels ? group * kTilePanels : group + count / kTilePanels * (kTilePanels - 1);
      *from = (panel_by_panel ? index % slices : index / groups) * kDepth;
    };
    int64_t panel, from, next_panel, next_from;
    place(i, &panel, &from);
    place(i + 1, &next_panel, &next_from);
    const int64_t depth = p.k - from < kDepth ? p.k - from : kDepth;
    if (i + 1 < groups * slices) prefetch_slice(p, next_panel, next_from, kDepth);
    if (panel + kTilePanels <= count) {
      multiply_slice<kDtype, kTilePanels>(p, panel, from, depth);
    } else {
      multiply_slice<kDtype, 1>(p, panel, from, depth);
    }
  }
}

template <int kDtype>
static void multiply(const PanelProduct &p) {
  // Decoding again for every tile costs less than storing: for blocks up to a few tiles, for floats as long as the rows
  // of x lie near.
  constexpr bool kBlocks = kDtype > MSGL_BF16;
  const bool few = p.rows <= (kBlocks ? 3 : 5) * kFewRows<kDtype> || (!kBlocks && p.rows * p.k <= 1 << 19);
  few ? multiply_few<kDtype>(p) : multiply_many<kDtype>(p);
}

void multiply_panels(const PanelProduct &p) {
  switch (p.dtype) {
    case MSGL_F32:
      return multiply<MSGL_F32>(p);
    case MSGL_F16:
      return multiply<MSGL_F16>(p);
    case MSGL_BF16:
      return multiply<MSGL_BF16>(p);
    case MSGL_Q8_0:
      return multiply<MSGL_Q8_0>(p);
    case MSGL_Q4_0:
      return multiply<MSGL_Q4_0>(p);
    case MSGL_Q4_1:
      return multiply<MSGL_Q4_1>(p);
    case MSGL_Q4_K:
      return multiply<MSGL_Q4_K>(p);
    default:
      return multiply<MSGL_Q6_K>(p);
  }
}

}  // namespace msgl::MSGL_ISA
