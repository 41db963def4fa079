/*
 * gemv_stream.cuh: the kernel of gemv.cu for products of which a block's share of W is larger than shared memory: it comes
 * through a ring of stages, each a chunk of every warp of up to `Slices` slices (a group), and x along with it.
 */
#ifndef MINISGL_GEMV_STREAM_CUH
#define MINISGL_GEMV_STREAM_CUH

#include "gemv.cuh"

namespace minisgl::gemv {

/* Shared memory: stages of W, [stage][slice][half chunk][lane]; of the norm's weights, [stage][warp][chunk]; of x,
 * [stage][half chunk][lane] or, for one token, [stage][warp][chunk]; squares of x, [warp][token]; two buffers of sums. */
template <int Slices, int Tokens>
struct StreamLayout {
  static constexpr int w_stage = Slices * 2 * slot_bytes, norm_stage = warps * chunk * 2;
  static constexpr int x_stage = Tokens == 1 ? warps * chunk * 2 : 2 * slot_bytes;
  static constexpr int stage = w_stage + norm_stage + x_stage;
  static size_t bytes(int stages) {
    return static_cast<size_t>(stages * stage) + 2 * Sums<Slices, Tokens>::bytes + warps * Tokens * sizeof(float);
  }
};

/* A block's slices, cut into groups as even as can be; pairs of gate and up stay together. */
template <int Slices, bool Gated>
struct Groups {
  static constexpr int unit = Gated ? 2 : 1;
  int first, units, count;

  DEVICE explicit Groups(const Gemv &a) {
    const int all = a.slices / unit, block = blockIdx.x, blocks = gridDim.x;
    first = block * all / blocks;
    units = (block + 1) * all / blocks - first;
    count = (units * unit + Slices - 1) / Slices;
  }
  /* The first slice of a group; that of group + 1 is where it ends. */
  DEVICE int begin(int group) const { return unit * (first + group * units / count); }
};

/* The walk of a warp over its chunks: chunk by chunk, then the next group. */
template <class Groups>
struct Walk {
  int group, chunk_index, slice, end;

  DEVICE Walk(const Groups &groups, const Gemv &a, int warp) : group(0), chunk_index(warp) {
    slice = groups.begin(0), end = groups.begin(1);
    if (warp >= a.chunks) group = groups.count;
  }
  DEVICE void advance(const Groups &groups, const Gemv &a, int warp) {
    chunk_index += warps;
    if (chunk_index < a.chunks) return;
    chunk_index = warp;
    slice = end;
    if (++group < groups.count) end = groups.begin(group + 1);
  }
};

/* Stages: of the ring. */
template <class T, int Slices, int Tokens, int Stages, bool Gated>
__global__ void __maxnreg__(48) stream_kernel(const __grid_constant__ Gemv a) {
  using L = StreamLayout<Slices, Tokens>;
  using S = Sums<Slices, Tokens>;
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  const uint32_t w_ring = shared_address(shared) + threadIdx.x * 16;
  const uint32_t norm_ring = shared_address(shared) + Stages * L::w_stage + warp * chunk * 2;
  const uint32_t x_ring = shared_address(shared) + Stages * (L::w_stage + L::norm_stage) +
                          (Tokens == 1 ? warp * chunk * 2 : threadIdx.x * 16);
  float *warps_squares = reinterpret_cast<float *>(shared + Stages * L::stage);
  float *sums = warps_squares + warps * Tokens;
  dependency_trigger();

  using BlockGroups = Groups<Slices, Gated>;
  const BlockGroups groups(a);
  const T *w_lane = static_cast<const T *>(a.w) + g * a.k + 8 * t;
  const T *x_lane = static_cast<const T *>(a.x) + g * a.k + 8 * t;
  const bool has_x = g < a.tokens;

  const auto copy_w = [&](const Walk<BlockGroups> &walk, int stage) {
    const int from = walk.chunk_index * chunk;
    if (a.norm != nullptr && lane < 8)
      copy_async(norm_ring + stage * L::norm_stage + lane * 16, static_cast<const T *>(a.norm) + from + lane * 8);
#pragma unroll
    for (int s = 0; s < Slices; s++) {
      const int slice = walk.slice + s;
      if (slice >= walk.end) break;
      const T *source = w_lane + first_row<Gated>(a, slice) * a.k + from;
      const uint32_t slot = w_ring + stage * L::w_stage + s * 2 * slot_bytes;
      copy_async(slot, source);
      copy_async(slot + slot_bytes, source + chunk / 2);
    }
  };
  const auto copy_x = [&](const Walk<BlockGroups> &walk, int stage) {
    const uint32_t slot = x_ring + stage * L::x_stage;
    if (Tokens == 1) {
      if (lane < 8) copy_async(slot + lane * 16, static_cast<const T *>(a.x) + walk.chunk_index * chunk + lane * 8);
    } else if (has_x) {
      copy_async(slot, x_lane + walk.chunk_index * chunk);
      copy_async(slot + slot_bytes, x_lane + walk.chunk_index * chunk + chunk / 2);
    }
  };

  const Walk<BlockGroups> start(groups, a, warp);
  Walk<BlockGroups> ahead = start;
  for (int stage = 0; stage < Stages; stage++) {
    if (ahead.group < groups.count) {
      copy_w(ahead, stage);
      ahead.advance(groups, a, warp);
    }
    copy_commit();
  }
  dependency_wait();
  ahead = start;
  for (int stage = 0; stage < Stages; stage++) {
    if (ahead.group < groups.count) {
      copy_x(ahead, stage);
      ahead.advance(groups, a, warp);
    }
    copy_commit();
  }

  int stage = 0, buffer = 0;
  float squares = 0.f;  // of this lane's pieces of token g
  for (int group = 0; group < groups.count; group++) {
    float c[S::tiles][1][4] = {};
    for (int chunk_index = warp; chunk_index < a.chunks; chunk_index += warps) {
      // Groups of copies are W of all stages, x of all stages, then one a turn: the wait is the same in every turn.
      copy_wait<Stages - 1>();
      const uint32_t x_slot = x_ring + stage * L::x_stage, norm_slot = norm_ring + stage * L::norm_stage;
      if (Tokens == 1 || a.norm != nullptr) __syncwarp();  // other lanes copied a part
      if (Tokens == 1 && a.norm != nullptr) {
        const uint32_t x = load_shared_word(x_slot + lane * 4);
        store_shared_word(x_slot + lane * 4, normalize<T>(x, load_shared_word(norm_slot + lane * 4), squares));
        __syncwarp();
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
        uint4 x = make_uint4(0, 0, 0, 0);
        if (has_x) x = load_shared(Tokens == 1 ? x_slot + half * chunk + t * 16 : x_slot + half * slot_bytes);
        if (Tokens > 1 && a.norm != nullptr) {
          const uint4 weights = load_shared(norm_slot + half * chunk + t * 16);
          normalize<T>(x, weights, squares);
        }
#pragma unroll
        for (int tile = 0; tile < S::tiles; tile++) {
          const uint32_t slot = w_ring + stage * L::w_stage + (tile * 4 + half) * slot_bytes;
          const uint4 low = load_shared(slot);
          const uint4 high = 2 * tile + 1 < Slices ? load_shared(slot + 2 * slot_bytes) : make_uint4(0, 0, 0, 0);
          mma<T>(c[tile][0], low.x, high.x, low.y, high.y, x.x, x.y);
          mma<T>(c[tile][0], low.z, high.z, low.w, high.w, x.z, x.w);
        }
      }
      if (Tokens == 1 || a.norm != nullptr) __syncwarp();
      if (ahead.group < groups.count) {
        copy_w(ahead, stage);
        copy_x(ahead, stage);
        ahead.advance(groups, a, warp);
      }
      copy_commit();
      stage = stage + 1 == Stages ? 0 : stage + 1;
    }

    float *buffered = sums + buffer * (S::bytes / 4);
    S::store(buffered, c, warp, lane);
    if (a.norm != nullptr && group == 0) {
      squares += __shfl_xor_sync(~0u, squares, 1);
      squares += __shfl_xor_sync(~0u, squares, 2);
      if (Tokens == 1)
        for (int offset = 4; offset < 32; offset <<= 1) squares += __shfl_xor_sync(~0u, squares, offset);
      if (t == 0 && g < Tokens) warps_squares[warp * Tokens + g] = squares;
    }
    __syncthreads();
    finish<T, Slices, Tokens, Gated, false>(a, buffered, warps_squares, groups.begin(group), groups.begin(group + 1), 0.f);
    buffer ^= 1;  // so one barrier a group is enough
  }
}

}  // namespace minisgl::gemv

#endif
