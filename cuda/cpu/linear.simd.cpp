// Two ways, which give the same bits. Few rows of x: weights are decoded in registers and used there. More rows: a slice
// of a panel is decoded to floats that stay in the first-level cache, and tiles of rows are multiplied with it.
#include "linear.h"

#include "codec.h"

namespace msgl::MSGL_ISA {

#if defined(MSGL_ISA_avx512)
constexpr int kTileRows = 12, kTilePanels = 2;
constexpr int kFusedPanels[] = {0, 4, 4, 2, 2};
#elif defined(MSGL_ISA_avx2)
constexpr int kTileRows = 6, kTilePanels = 1;
constexpr int kFusedPanels[] = {0, 2, 1, 1, 1};
#else
constexpr int kTileRows = 6, kTilePanels = 1;
constexpr int kFusedPanels[] = {0, 1, 1, 1, 1};
#endif
constexpr int kFusedRows = 4;    // kFusedPanels: side by side for so many rows, to hide the latency of a chain
constexpr int kDepth = 288;      // columns of a panel that are decoded at a time

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

/// Writes kRows x kColumns registers of sums to out, of which `columns` columns exist.
template <int kRows, int kColumns>
static inline void put(Floats (&sums)[kRows][kColumns], float *out, int64_t stride, int64_t columns,
                       const float *bias) {
  for (int c = 0; c < kColumns; ++c) {
    const int64_t left = columns - c * kLanes;
    const Floats add = bias == nullptr ? Floats{} : load_some(bias + c * kLanes, left);
    for (int r = 0; r < kRows; ++r) {
      store_some(out + r * stride + c * kLanes, bias == nullptr ? sums[r][c] : sums[r][c] + add, left);
    }
  }
}

// ---- few rows ----------------------------------------------------------------------------------------------------------

/// kRows rows of x times kPanels panels.
template <int kDtype, int kRows, int kPanels>
static void fused(const PanelProduct &p, const uint8_t *panels, int64_t column) {
  using C = Codec<kDtype>;
  constexpr int kColumns = kPanels * kVectors;
  Floats sums[kRows][kColumns] = {};
  const auto step = [&](int64_t run, int s, int count, const typename C::Scales *scales) __attribute__((always_inline)) {
    typename C::Raw raw[kColumns];
    for (int c = 0; c < kColumns; ++c) raw[c] = C::raw(panels + c / kVectors * p.panel_bytes, run, s, c % kVectors);
#pragma GCC unroll 4
    for (int j = 0; j < count; ++j) {
      Floats x[kRows];
      for (int r = 0; r < kRows; ++r) x[r] = broadcast(p.x[r * p.k + run * C::kRun + s * C::kStep + j]);
      for (int c = 0; c < kColumns; ++c) {
        const Floats w = C::value(raw[c], scales[c], j);
        for (int r = 0; r < kRows; ++r) sums[r][c] = exact_fma(x[r], w, sums[r][c]);
      }
    }
  };
  const int64_t runs = p.k / C::kRun;
  for (int64_t run = 0; run < runs; ++run) {
    typename C::Scales scales[kColumns];
    for (int c = 0; c < kColumns; ++c) {
      scales[c] = C::scales(panels + c / kVectors * p.panel_bytes, run, c % kVectors);
    }
#pragma GCC unroll 16
    for (int s = 0; s < C::kRun / C::kStep; ++s) step(run, s, C::kStep, scales);
  }
  const typename C::Scales none[kColumns] = {};  // only floats have columns past the last whole run
  int64_t rest = p.k % C::kRun;
  for (int s = 0; rest > 0; ++s, rest -= C::kStep) {
    if (rest >= C::kStep) {
      step(runs, s, C::kStep, none);
    } else {
      step(runs, s, static_cast<int>(rest), none);
    }
  }
  put(sums, p.out + column, p.out_stride, p.columns - column, p.bias == nullptr ? nullptr : p.bias + column);
}

template <int kDtype, int kRows>
static void multiply_few(const PanelProduct &p) {
  constexpr int kPanels = kFusedPanels[kRows];
  int64_t panel = 0;
  const int64_t count = (p.columns + kPanelRows - 1) / kPanelRows;
  for (; panel + kPanels <= count; panel += kPanels) {
    fused<kDtype, kRows, kPanels>(p, p.panels + panel * p.panel_bytes, panel * kPanelRows);
  }
  for (; panel < count; ++panel) {
    fused<kDtype, kRows, 1>(p, p.panels + panel * p.panel_bytes, panel * kPanelRows);
  }
}

// ---- many rows ---------------------------------------------------------------------------------------------------------

/// Columns `from` to `from + count` of a panel as floats [count][16]; `from` starts a run.
template <int kDtype>
static void decode(const uint8_t *panel, int64_t from, int64_t count, float *floats) {
  using C = Codec<kDtype>;
  for (int v = 0; v < kVectors; ++v) {
    float *to = floats + v * kLanes;
    for (int64_t column = 0; column < count; column += C::kRun) {
      const int64_t run = (from + column) / C::kRun;
      const typename C::Scales scales = C::scales(panel, run, v);
      const int64_t left = count - column;
#pragma GCC unroll 16
      for (int s = 0; s < C::kRun / C::kStep; ++s) {
        if (left < C::kRun && s * C::kStep >= left) break;
        const typename C::Raw raw = C::raw(panel, run, s, v);
        for (int j = 0; j < C::kStep; ++j, to += kPanelRows) store(to, C::value(raw, scales, j));
      }
    }
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
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) {
      sums[r][c] = slice.first ? Floats{} : load_some(out + r * stride + c * kLanes, columns - c * kLanes);
    }
  }
  const float *x = slice.x;
  for (int64_t i = 0; i < slice.depth; ++i, ++x) {
    Floats w[kColumns];
    for (int c = 0; c < kColumns; ++c) w[c] = load(slice.panels[c / kVectors] + i * kPanelRows + c % kVectors * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Floats value = broadcast(x[r * slice.x_stride]);
      for (int c = 0; c < kColumns; ++c) sums[r][c] = exact_fma(value, w[c], sums[r][c]);
    }
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

template <int kDtype>
static void multiply_many(const PanelProduct &p) {
  const int64_t count = (p.columns + kPanelRows - 1) / kPanelRows;
  for (int64_t from = 0; from < p.k; from += kDepth) {
    const int64_t depth = p.k - from < kDepth ? p.k - from : kDepth;
    int64_t panel = 0;
    for (; panel + kTilePanels <= count; panel += kTilePanels) {
      multiply_slice<kDtype, kTilePanels>(p, panel, from, depth);
    }
    for (; panel < count; ++panel) multiply_slice<kDtype, 1>(p, panel, from, depth);
  }
}

template <int kDtype>
static void multiply(const PanelProduct &p) {
  switch (p.rows) {
    case 1:
      return multiply_few<kDtype, 1>(p);
    case 2:
      return multiply_few<kDtype, 2>(p);
    case 3:
      return multiply_few<kDtype, 3>(p);
    case kFusedRows:
      return multiply_few<kDtype, kFusedRows>(p);
    default:
      return multiply_many<kDtype>(p);
  }
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
