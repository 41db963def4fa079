/*
 * attention_decode.cu: attention of one query row a sequence, at the speed at which K and V can be read.
 *
 * A block of 4 warps walks over tiles of one KV head; a warp has 16 tokens of each tile (32 where head_dim is 64) and its
 * own ring of stages in shared memory, filled by 16-byte asynchronous copies, so the loop has no barrier. The product is
 * transposed, so that the group's query heads (up to 8, or 16 as two columns of tiles) are the n of m16n8k16:
 *
 *   scores^T [16 tokens, 8 heads] = K [16, head_dim] q^T          out^T [head_dim, 8 heads] += V^T [head_dim, 16] p^T
 *
 * A stage of a warp: its rows of K, then its rows of V, in 16-byte units; units are permuted within a row so that fragment
 * loads have no bank conflicts: unit u of row r lies at u ^ 4 (r mod 2) in K, at u ^ (r mod 8) in V.
 *
 * Within a row of K and of q a lane takes 8 consecutive dimensions where the instruction names two pairs 8 apart: a sum
 * does not depend on the order of its terms as long as both factors use the same.
 */
#include <algorithm>
#include <cmath>

#include "attention.h"
#include "mma.cuh"

namespace minisgl {
namespace {

constexpr int warps = 4;
constexpr int warp_tokens(int head_dim) { return head_dim == 64 ? 32 : 16; }
constexpr int tile_tokens(int head_dim) { return warps * warp_tokens(head_dim); }

/* Where a block starts: its linear tile index, which sequence, head and tile of the head that is, and what the first
 * copies need to know of the sequence, so that they wait for one load and not for three. */
struct alignas(16) Start {
  int32_t sequence, head, tile, linear, context, page_begin, unused[2];
};

struct Decode {
  void *out;
  const void *q, *k_cache, *v_cache;
  const int32_t *page_begin, *pages, *last_page_length;
  const Start *starts;  // [grid + 1]; the last one's `linear` is the number of all tiles
  float *partials;      // [2 * grid, group, head_dim + 4]: see finish_head
  int32_t *counters;    // [sequences, kv_heads]: partials that have been written, zero between launches
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
    context = start.context, page_begin = start.page_begin;
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
  static constexpr int stages = HeadDim <= 128 ? 3 : 2;

  DEVICE static int k_offset(int row, int unit) { return row * row_bytes + (unit ^ (row & 1) << 2) * 16; }
  DEVICE static int v_offset(int row, int unit) {
    return (rows + row) * row_bytes + (unit ^ (row & 7)) * 16;
  }
  /* Floats of shared memory behind the stages: each warp's results, for the merge. */
  static int merge_floats(int group) { return warps * group * (HeadDim + 2); }
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

/* A warp's results to shared memory: out [warps, group, head_dim], then maximum and sum [warps, group, 2]. */
template <int HeadDim, int Columns>
DEVICE void store_warp(const State<HeadDim, Columns> &s, float *merge, int group, int warp, int lane) {
  const int g = lane >> 2, t = lane & 3;
  float *statistics = merge + warps * group * HeadDim;
#pragma unroll
  for (int c = 0; c < Columns; c++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int head = c * 8 + t * 2 + h;
      float sum = s.sum[c][h];
#pragma unroll
      for (int offset = 4; offset < 32; offset <<= 1) sum += __shfl_xor_sync(~0u, sum, offset);
      if (head >= group) continue;
      float *out = merge + (warp * group + head) * HeadDim;
#pragma unroll
      for (int j = 0; j < HeadDim / 16; j++) {
        out[j * 16 + g] = s.out[c][j][h];
        out[j * 16 + g + 8] = s.out[c][j][2 + h];
      }
      if (g == 0) {
        statistics[(warp * group + head) * 2] = s.maximum[c][h];
        statistics[(warp * group + head) * 2 + 1] = sum;
      }
    }
}

/* N consecutive floats, past the L1 cache. */
template <int N>
DEVICE void load_floats(float (&values)[N], const float *source) {
  if constexpr (N == 2) {
    const float2 v = __ldcg(reinterpret_cast<const float2 *>(source));
    values[0] = v.x, values[1] = v.y;
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const float4 v = __ldcg(reinterpret_cast<const float4 *>(source + i));
      values[i] = v.x, values[i + 1] = v.y, values[i + 2] = v.z, values[i + 3] = v.w;
    }
  }
}

/*
 * A head's end: merges the warps and, where other blocks have tiles of this head too, the blocks. Their results meet in
 * `partials`, [slot][head of the group][out: head_dim, maximum, sum, unused: 2], where a block has two slots: 2 * block for
 * a head that began in an earlier block, 2 * block + 1 for one that begins in this block and ends in a later one.
 */
template <class T, int HeadDim>
struct Finish {
  static constexpr int partial = HeadDim + 4, per_lane = HeadDim / 32;
  const Decode &a;
  const float *merge;
  T *out;  // of the first head of the group
  int warp, lane;

  /* This warp's heads: the sum over warps; to `out`, or to the slot. */
  DEVICE void merge_warps(float *slot) const {
    const float *statistics = merge + warps * a.group * HeadDim;
    for (int head = warp; head < a.group; head += warps) {
      float weight[warps], maximum = -INFINITY, sum = 0.f;
#pragma unroll
      for (int w = 0; w < warps; w++) maximum = fmaxf(maximum, statistics[(w * a.group + head) * 2]);
#pragma unroll
      for (int w = 0; w < warps; w++) {
        weight[w] = power_of_two(statistics[(w * a.group + head) * 2] - maximum);
        sum += weight[w] * statistics[(w * a.group + head) * 2 + 1];
      }
      float value[per_lane] = {};
#pragma unroll
      for (int w = 0; w < warps; w++)
#pragma unroll
        for (int i = 0; i < per_lane; i++)
          value[i] += weight[w] * merge[(w * a.group + head) * HeadDim + lane * per_lane + i];
      if (slot == nullptr) {
        write(head, value, sum);
        continue;
      }
      float *destination = slot + head * partial;
#pragma unroll
      for (int i = 0; i < per_lane; i += 2)
        __stcg(reinterpret_cast<float2 *>(destination + lane * per_lane + i), make_float2(value[i], value[i + 1]));
      if (lane == 0) __stcg(reinterpret_cast<float2 *>(destination + HeadDim), make_float2(maximum, sum));
    }
  }

  /* This warp's heads: the sum over blocks first .. last, 32 at a time. */
  DEVICE void merge_blocks(int first, int last) const {
    for (int head = warp; head < a.group; head += warps) {
      float maximum = -INFINITY, sum = 0.f, value[per_lane] = {};
      for (int begin = first; begin <= last; begin += 32) {
        const int block = begin + lane, count = min(32, last - begin + 1);
        float2 statistics = make_float2(-INFINITY, 0.f);
        if (block <= last)
          statistics = __ldcg(reinterpret_cast<const float2 *>(slot_of(block, first) + head * partial + HeadDim));
        float next = statistics.x;
#pragma unroll
        for (int offset = 16; offset > 0; offset >>= 1) next = fmaxf(next, __shfl_xor_sync(~0u, next, offset));
        next = fmaxf(next, maximum);
        const float rescale = power_of_two(maximum - next), weight = power_of_two(statistics.x - next);
        maximum = next;
        sum = sum * rescale + warp_sum(weight * statistics.y);
#pragma unroll
        for (int i = 0; i < per_lane; i++) value[i] *= rescale;
#pragma unroll 8
        for (int j = 0; j < count; j++) {
          const float w = __shfl_sync(~0u, weight, j);
          float other[per_lane];
          load_floats(other, slot_of(begin + j, first) + head * partial + lane * per_lane);
#pragma unroll
          for (int i = 0; i < per_lane; i++) value[i] += w * other[i];
        }
      }
      write(head, value, sum);
    }
  }

 private:
  DEVICE const float *slot_of(int block, int first) const {
    return a.partials + static_cast<int64_t>(2 * block + (block == first ? 1 : 0)) * a.group * partial;
  }
  DEVICE void write(int head, const float (&value)[per_lane], float sum) const {
    uint32_t *destination = reinterpret_cast<uint32_t *>(out + head * HeadDim + lane * per_lane);
#pragma unroll
    for (int i = 0; i < per_lane; i += 2) destination[i / 2] = pack<T>(value[i] / sum, value[i + 1] / sum);
  }
};

/* first_tile, begin: the first tile of this head that is this block's, within the head and linear; end: of the block. */
template <class T, int HeadDim>
DEVICE void finish_head(const Decode &a, const Walk<tile_tokens(HeadDim)> &w, const float *merge, int first_tile, int begin, int end,
                        int total) {
  __shared__ bool is_last;
  const int head_begin = begin - first_tile, head_end = head_begin + w.tiles();  // linear tiles of this head
  const int64_t row = static_cast<int64_t>(w.sequence) * a.kv_heads + w.head;
  const Finish<T, HeadDim> finish{a, merge, static_cast<T *>(a.out) + row * a.group * HeadDim,
                                  static_cast<int>(threadIdx.x / 32), static_cast<int>(threadIdx.x % 32)};
  if (head_begin >= begin && head_end <= end) return finish.merge_warps(nullptr);
  const int slot = 2 * blockIdx.x + (head_begin < begin ? 0 : 1);
  finish.merge_warps(a.partials + static_cast<int64_t>(slot) * a.group * (HeadDim + 4));

  // Blocks own the linear tiles from floor(block * total / blocks) on; those past `total` blocks own none.
  const int64_t blocks = min(static_cast<int>(gridDim.x), total);
  const int first = static_cast<int>(((head_begin + 1) * blocks - 1) / total);
  const int last = static_cast<int>((head_end * blocks - 1) / total);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(a.counters + row, 1) == last - first;
    if (is_last) a.counters[row] = 0;
    __threadfence();
  }
  __syncthreads();
  if (is_last) finish.merge_blocks(first, last);
}

template <class T, int HeadDim, int Columns>
__global__ void __launch_bounds__(warps * 32) decode_kernel(const Decode a) {
  using L = Layout<HeadDim>;
  extern __shared__ __align__(128) char shared[];
  float *merge = reinterpret_cast<float *>(shared + L::stages * warps * L::stage_bytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  const uint32_t ring = shared_address(shared) + warp * L::stages * L::stage_bytes;
  if (!a.early) dependency_wait();
  dependency_trigger();
  const int4 *words = reinterpret_cast<const int4 *>(a.starts + blockIdx.x);
  const int4 where = __ldcg(words), lengths = __ldcg(words + 1);
  const Start start{where.x, where.y, where.z, where.w, lengths.x, lengths.y, {}};
  const int end = __ldcg(&a.starts[blockIdx.x + 1].linear), total = __ldcg(&a.starts[gridDim.x].linear);
  const int count = end - start.linear;
  if (count == 0) {
    dependency_wait();
    return;
  }

  // The walk that loads runs `stages` tiles ahead of the one that computes.
  Walk<L::tile> ahead;
  ahead.begin(a, start);
  int row_of_lane = token_row<HeadDim>(a, ahead, warp, lane), issued = 0;
  const auto issue = [&](int skip) {
    if (issued < count) {
      copy_tile<T, HeadDim>(a, ahead, ring + issued % L::stages * L::stage_bytes, row_of_lane, skip, warp, lane);
      if (++issued < count) {
        ahead.advance(a);
        row_of_lane = token_row<HeadDim>(a, ahead, warp, lane);
      }
    }
    copy_commit();
  };
  int prologue = 0;
  if (a.early) {
    // The last token's row is being written by the op before: it is left out here and copied after the wait.
    const int last_tile = (ahead.context - 1) / L::tile, last_warp = (ahead.context - 1) % L::tile / L::rows;
    const int last_row = (ahead.context - 1) % L::rows;
    const int before_last = min(min(last_tile - start.tile + 1, count), L::stages);
    int missing_stage = -1, missing_row = 0;
    for (; prologue < before_last; prologue++) {
      const bool has_last = start.tile + prologue == last_tile && warp == last_warp;
      if (has_last) missing_stage = prologue, missing_row = __shfl_sync(~0u, row_of_lane, last_row);
      issue(has_last ? last_row : -1);
    }
    dependency_wait();
    if (missing_stage >= 0) {
      const int64_t offset = (static_cast<int64_t>(missing_row) * a.kv_heads + start.head) * HeadDim;
      const uint32_t stage = ring + missing_stage * L::stage_bytes;
      for (int unit = lane; unit < L::units; unit += 32) {
        const uint4 k = __ldcg(reinterpret_cast<const uint4 *>(static_cast<const T *>(a.k_cache) + offset) + unit);
        const uint4 v = __ldcg(reinterpret_cast<const uint4 *>(static_cast<const T *>(a.v_cache) + offset) + unit);
        store_shared(stage + L::k_offset(last_row, unit), k);
        store_shared(stage + L::v_offset(last_row, unit), v);
      }
    }
  }
  for (; prologue < L::stages; prologue++) issue(-1);

  Walk<L::tile> walk;
  walk.begin(a, start);
  State<HeadDim, Columns> state;
  state.clear();
  uint4 q[Columns][HeadDim / 32];
  const auto load_query = [&] {
    const T *row = static_cast<const T *>(a.q) +
                   (static_cast<int64_t>(walk.sequence) * a.kv_heads + walk.head) * a.group * HeadDim;
#pragma unroll
    for (int c = 0; c < Columns; c++)
#pragma unroll
      for (int i = 0; i < HeadDim / 32; i++) {
        q[c][i] = make_uint4(0, 0, 0, 0);
        if (c * 8 + g < a.group)
          q[c][i] = __ldcg(reinterpret_cast<const uint4 *>(row + (c * 8 + g) * HeadDim) + 4 * i + t);
      }
  };
  load_query();
  int head_begin = start.linear;  // linear index of the first tile of this head that is this block's
  int first_tile = start.tile;    // and which tile of the head it is
  for (int i = 0; i < count; i++) {
    copy_wait<L::stages - 1>();
    __syncwarp();
    const int valid = walk.context - (walk.tile * L::tile + warp * L::rows);
    if (valid > 0)
      add_tile<T, HeadDim, Columns>(state, q, ring + i % L::stages * L::stage_bytes, valid, a.scale, lane);
    __syncwarp();
    issue(-1);
    const bool head_ends = walk.tile + 1 == walk.tiles();
    if (head_ends || i + 1 == count) {
      store_warp(state, merge, a.group, warp, lane);
      __syncthreads();
      finish_head<T, HeadDim>(a, walk, merge, first_tile, head_begin, end, total);
      __syncthreads();
      state.clear();
    }
    if (i + 1 == count) break;
    walk.advance(a);
    if (head_ends) {
      head_begin = start.linear + i + 1;
      first_tile = 0;
      load_query();
    }
  }
}

template <class T, int HeadDim, int Columns>
struct Kernel {
  static constexpr auto function = decode_kernel<T, HeadDim, Columns>;
  static size_t shared_bytes(int group) {
    using L = Layout<HeadDim>;
    return L::stages * warps * L::stage_bytes + L::merge_floats(group) * sizeof(float);
  }
};

/* Calls f with the Kernel of a shape. */
template <class F>
void dispatch(int32_t dtype, int head_dim, int group, F f) {
  dispatch_half(dtype, [&](auto *type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const bool wide = group > 8;
    switch (head_dim) {
      case 64:
        return wide ? f(Kernel<T, 64, 2>()) : f(Kernel<T, 64, 1>());
      case 128:
        return wide ? f(Kernel<T, 128, 2>()) : f(Kernel<T, 128, 1>());
      case 256:
        return wide ? f(Kernel<T, 256, 2>()) : f(Kernel<T, 256, 1>());
      default:
        fail("decode attention has no head_dim %d", head_dim);
    }
  });
}

}  // namespace

bool DecodePlan::supports(const msgl_device *device, int heads, int kv_heads, int head_dim) {
  const int group = heads / kv_heads;
  if ((head_dim != 64 && head_dim != 128 && head_dim != 256) || group > 16) return false;
  bool fits = false;
  dispatch(MSGL_BF16, head_dim, group, [&](auto kernel) {
    fits = kernel.shared_bytes(group) <= static_cast<size_t>(device->shared_per_block);
  });
  return fits;
}

DecodePlan::DecodePlan(const msgl_device *device, const AttentionShape &shape, int32_t dtype)
    : shape_(shape), dtype_(dtype), ring_(sizeof(Start) * (4 * device->multiprocessors + 1)) {
  const int group = shape.heads / shape.kv_heads;
  dispatch(dtype, shape.head_dim, group, [&](auto kernel) {
    const int bytes = static_cast<int>(kernel.shared_bytes(group));
    check(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory");
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel.function, warps * 32, bytes), "occupancy");
    grid_ = std::clamp(blocks, 1, 4) * device->multiprocessors;
  });
  starts_ = DeviceBuffer(sizeof(Start) * (grid_ + 1));
  partials_ = DeviceBuffer(sizeof(float) * 2 * grid_ * group * (shape.head_dim + 4));
  const size_t counters = sizeof(int32_t) * static_cast<size_t>(shape.max_sequences) * shape.kv_heads;
  counters_ = DeviceBuffer(counters);
  check(cudaMemset(counters_.get(), 0, counters), "cudaMemset");
}

void DecodePlan::update(msgl_device *device, const int32_t *context_lengths, int sequences) {
  const int tile = tile_tokens(shape_.head_dim);
  const auto tiles_of = [&](int sequence) { return ceil_div(context_lengths[sequence], tile); };
  int64_t total = 0;
  for (int i = 0; i < sequences; i++) total += tiles_of(i) * shape_.kv_heads;
  Start *starts = static_cast<Start *>(ring_.acquire());
  int sequence = 0, page_begin = 0;
  int64_t before = 0;  // tiles of the sequences before `sequence`
  const int64_t blocks = std::min<int64_t>(grid_, total);
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t linear = block * total / blocks;
    while (linear >= before + tiles_of(sequence) * shape_.kv_heads) {
      before += tiles_of(sequence) * shape_.kv_heads;
      page_begin += static_cast<int>(ceil_div(context_lengths[sequence++], shape_.page_size));
    }
    const int64_t within = linear - before, tiles = tiles_of(sequence);
    starts[block] = {sequence, static_cast<int32_t>(within / tiles), static_cast<int32_t>(within % tiles),
                     static_cast<int32_t>(linear), context_lengths[sequence], page_begin, {}};
  }
  Start past{};
  past.linear = static_cast<int32_t>(total);
  std::fill(starts + blocks, starts + grid_ + 1, past);
  check(cudaMemcpyAsync(starts_.get(), starts, sizeof(Start) * (grid_ + 1), cudaMemcpyHostToDevice, device->stream),
        "attention plan");
  ring_.release(device->stream);
}

void DecodePlan::run(msgl_device *device, const AttentionArguments &arguments, bool early) const {
  const int group = shape_.heads / shape_.kv_heads;
  const Decode decode{arguments.out,
                      arguments.q,
                      arguments.k_cache,
                      arguments.v_cache,
                      arguments.page_begin,
                      arguments.pages,
                      arguments.last_page_length,
                      starts_.get<Start>(),
                      partials_.get<float>(),
                      counters_.get<int32_t>(),
                      arguments.sequences,
                      group,
                      shape_.kv_heads,
                      shape_.page_size,
                      arguments.scale * static_cast<float>(M_LOG2E),
                      early && device->dependent_launch};
  dispatch(dtype_, shape_.head_dim, group, [&](auto kernel) {
    launch(device, Follow::dependent, kernel.function, grid_, warps * 32, kernel.shared_bytes(group), decode);
  });
}

}  // namespace minisgl
