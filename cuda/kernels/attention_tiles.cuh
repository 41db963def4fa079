/*
 * attention_tiles.cuh: the part of attention_decode.cu that a warp does alone: walking over tiles, copying them to shared
 * memory, and multiplying.
 *
 * The product is transposed, so that the group's query heads (up to 8, or 16 as two columns of tiles) are the n of
 * m16n8k16:
 *
 *   scores^T [16 tokens, 8 heads] = K [16, head_dim] q^T          out^T [head_dim, 8 heads] += V^T [head_dim, 16] p^T
 *
 * A stage of a warp: its rows of K, then its rows of V, in 16-byte units; units are permuted within a row so that fragment
 * loads have no bank conflicts: unit u of row r lies at u ^ 4 (r mod 2) in K, at u ^ (r mod 8) in V.
 *
 * Within a row of K and of q a lane takes 8 consecutive dimensions where the instruction names two pairs 8 apart: a sum
 * does not depend on the order of its terms as long as both factors use the same.
 */
#ifndef MINISGL_ATTENTION_TILES_CUH
#define MINISGL_ATTENTION_TILES_CUH

#include "mma.cuh"

namespace minisgl::decode {

constexpr int warps = 4, max_group = 16;
constexpr int warp_tokens(int head_dim) { return head_dim == 64 ? 32 : 16; }
constexpr int tile_tokens(int head_dim) { return warps * warp_tokens(head_dim); }

/* A block's share: where it starts, how many tiles it has, and the block that has the first tile of that first head. */
struct alignas(16) Start {
  int32_t sequence, head, tile, count, head_block, unused[3];
};

struct Decode {
  void *out;
  const void *q, *k_cache, *v_cache;
  const int32_t *page_begin, *pages, *last_page_length;
  const Start *starts;  // [grid]
  uint32_t *partials;   // [2 * grid, group, head_dim + 4]: see attention_merge.cuh
  int sequences, group, kv_heads, page_size;
  float scale;  // of the scores, times log2(e)
  bool early;
};

DEVICE float power_of_two(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/* A position in the walk over tiles. The lengths of a sequence are loaded when the walk enters the one before. */
template <int TileTokens>
struct Walk {
  int sequence, head, tile;
  int context, page_begin, next_context, next_page_begin;

  DEVICE static int length(const Decode &a, int sequence, int page_begin) {
    return (__ldcg(a.page_begin + sequence + 1) - page_begin - 1) * a.page_size + __ldcg(a.last_page_length + sequence);
  }
  DEVICE void read_next(const Decode &a) {
    const int next = min(sequence + 1, a.sequences - 1);
    next_page_begin = __ldcg(a.page_begin + next);
    next_context = length(a, next, next_page_begin);
  }
  DEVICE void begin(const Decode &a, const Start &start) {
    sequence = start.sequence, head = start.head, tile = start.tile;
    page_begin = __ldcg(a.page_begin + sequence);
    context = length(a, sequence, page_begin);
    read_next(a);
  }
  DEVICE int tiles() const { return (context + TileTokens - 1) / TileTokens; }
  DEVICE void advance(const Decode &a) {
    if (++tile < tiles()) return;
    tile = 0;
    if (++head < a.kv_heads) return;
    head = 0;
    sequence++;
    context = next_context, page_begin = next_page_begin;
    read_next(a);
  }
};

template <int HeadDim>
struct Layout {
  static constexpr int units = HeadDim / 8;              // 16-byte units of a row
  static constexpr int rows_per_copy = 32 / units;       // rows that a warp copies with one instruction
  static constexpr int row_bytes = HeadDim * 2;
  static constexpr int rows = warp_tokens(HeadDim), tile = tile_tokens(HeadDim);
  static constexpr int stage_bytes = 2 * rows * row_bytes;  // of one warp
  static constexpr int stages = 2;  // three blocks of two stages a multiprocessor were faster than two of three

  DEVICE static int k_offset(int row, int unit) { return row * row_bytes + (unit ^ (row & 1) << 2) * 16; }
  DEVICE static int v_offset(int row, int unit) {
    return (rows + row) * row_bytes + (unit ^ (row & 7)) * 16;
  }
};

/* The cache row of this lane's token in the warp's part of the walk's tile; 0 past the context's end. */
template <int HeadDim>
DEVICE int token_row(const Decode &a, const Walk<tile_tokens(HeadDim)> &w, int warp, int lane) {
  using L = Layout<HeadDim>;
  const int token = w.tile * L::tile + warp * L::rows + lane % L::rows;
  if (token >= w.context) return 0;
  const int32_t *pages = a.pages + w.page_begin;
  if (a.page_size == 1) return __ldcg(pages + token);
  return __ldcg(pages + token / a.page_size) * a.page_size + token % a.page_size;
}

/* Copies the warp's rows of K and V to its stage; rows past the end become zeros, row `skip` is left out. */
template <class T, int HeadDim>
DEVICE void copy_tile(const Decode &a, const Walk<tile_tokens(HeadDim)> &w, uint32_t stage, int row_of_lane, int skip,
                      int warp, int lane) {
  using L = Layout<HeadDim>;
  const int valid = w.context - (w.tile * L::tile + warp * L::rows);
  const int unit = lane % L::units, row_values = a.kv_heads * HeadDim;
  const T *k = static_cast<const T *>(a.k_cache) + w.head * HeadDim + unit * 8;
  const T *v = static_cast<const T *>(a.v_cache) + w.head * HeadDim + unit * 8;
#pragma unroll
  for (int i = 0; i < L::rows / L::rows_per_copy; i++) {
    const int row = i * L::rows_per_copy + lane / L::units;
    const int64_t offset = static_cast<int64_t>(__shfl_sync(~0u, row_of_lane, row)) * row_values;
    if (row == skip) continue;
    copy_async_or_zero(stage + L::k_offset(row, unit), k + offset, row < valid);
    copy_async_or_zero(stage + L::v_offset(row, unit), v + offset, row < valid);
  }
}

/* Running softmax of a warp: maxima and sums of this lane's heads 2 (lane % 4), + 1 and its part of out^T. */
template <int HeadDim, int Columns>
struct State {
  float maximum[Columns][2], sum[Columns][2], out[Columns][HeadDim / 16][4];

  DEVICE void clear() {
#pragma unroll
    for (int c = 0; c < Columns; c++) {
#pragma unroll
      for (int h = 0; h < 2; h++) maximum[c][h] = -INFINITY, sum[c][h] = 0.f;
#pragma unroll
      for (int j = 0; j < HeadDim / 16; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[c][j][i] = 0.f;
    }
  }
};

/* Adds the tokens of a stage, of which the first `valid` count (at least one). */
template <class T, int HeadDim, int Columns>
DEVICE void add_tile(State<HeadDim, Columns> &s, const uint4 (&q)[Columns][HeadDim / 32], uint32_t stage, int valid,
                     float scale, int lane) {
  using L = Layout<HeadDim>;
  constexpr int parts = L::rows / 16;  // of 16 tokens
  const int g = lane >> 2, t = lane & 3;
  float scores[parts][Columns][4] = {};
#pragma unroll
  for (int part = 0; part < parts; part++)
#pragma unroll
    for (int i = 0; i < HeadDim / 32; i++) {
      const uint4 low = load_shared(stage + L::k_offset(part * 16 + g, 4 * i + t));
      const uint4 high = load_shared(stage + L::k_offset(part * 16 + g + 8, 4 * i + t));
#pragma unroll
      for (int c = 0; c < Columns; c++) {
        mma<T>(scores[part][c], low.x, high.x, low.y, high.y, q[c][i].x, q[c][i].y);
        mma<T>(scores[part][c], low.z, high.z, low.w, high.w, q[c][i].z, q[c][i].w);
      }
    }

  uint32_t p[parts][Columns][2];  // B fragments of p^T: tokens 0 .. 7 and 8 .. 15 of a part
#pragma unroll
  for (int c = 0; c < Columns; c++) {
    float rescale[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float maximum = s.maximum[c][h];
#pragma unroll
      for (int part = 0; part < parts; part++) {
        float &a = scores[part][c][h], &b = scores[part][c][2 + h];  // tokens g and g + 8
        a = part * 16 + g < valid ? a * scale : -INFINITY;
        b = part * 16 + g + 8 < valid ? b * scale : -INFINITY;
        maximum = fmaxf(maximum, fmaxf(a, b));
      }
#pragma unroll
      for (int offset = 4; offset < 32; offset <<= 1)
        maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, offset));
      rescale[h] = power_of_two(s.maximum[c][h] - maximum);
      s.maximum[c][h] = maximum;
      s.sum[c][h] *= rescale[h];
#pragma unroll
      for (int part = 0; part < parts; part++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          float &score = scores[part][c][2 * i + h];
          score = power_of_two(score - maximum);
          s.sum[c][h] += score;
        }
    }
#pragma unroll
    for (int part = 0; part < parts; part++)
#pragma unroll
      for (int i = 0; i < 2; i++)
        p[part][c][i] = transpose_8x8(pack<T>(scores[part][c][2 * i], scores[part][c][2 * i + 1]));
#pragma unroll
    for (int j = 0; j < HeadDim / 16; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) s.out[c][j][i] *= rescale[i & 1];
  }

  const int row = (lane & 7) + (lane >> 4 << 3), half = lane >> 3 & 1;
#pragma unroll
  for (int part = 0; part < parts; part++)
#pragma unroll
    for (int j = 0; j < HeadDim / 16; j++) {
      uint32_t v[4];
      load_matrix_transposed(v, stage + L::v_offset(part * 16 + row, 2 * j + half));
#pragma unroll
      for (int c = 0; c < Columns; c++) mma<T>(s.out[c][j], v[0], v[1], v[2], v[3], p[part][c][0], p[part][c][1]);
    }
}

}  // namespace minisgl::decode

#endif
