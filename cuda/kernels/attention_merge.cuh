/*
 * attention_merge.cuh: the part of attention_decode.cu that happens at a head's end: the warps of a block meet in shared
 * memory, and blocks that share a head meet in global memory.
 */
#ifndef MINISGL_ATTENTION_MERGE_CUH
#define MINISGL_ATTENTION_MERGE_CUH

#include "attention_tiles.cuh"

namespace minisgl::decode {

/*
 * Where the warps of a block meet at a head's end: a warp leaves out [group, head_dim] in the stage that it has just read,
 * which is large enough for 16 heads and refilled only afterwards, and maximum and sum in `statistics`.
 */
template <int HeadDim>
struct Meeting {
  char *shared;      // [warp][stage]
  float *statistics; // [warp][head][2]
  int stage;         // the one just read

  DEVICE float *out(int warp) const {
    using L = Layout<HeadDim>;
    return reinterpret_cast<float *>(shared + (warp * L::stages + stage) * L::stage_bytes);
  }
  DEVICE float *of(int warp, int head) const { return statistics + (warp * max_group + head) * 2; }
};

template <int HeadDim, int Columns>
DEVICE void store_warp(const State<HeadDim, Columns> &s, const Meeting<HeadDim> &meeting, int group, int warp, int lane) {
  const int g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int c = 0; c < Columns; c++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int head = c * 8 + t * 2 + h;
      float sum = s.sum[c][h];
#pragma unroll
      for (int offset = 4; offset < 32; offset <<= 1) sum += __shfl_xor_sync(~0u, sum, offset);
      if (head >= group) continue;
      float *out = meeting.out(warp) + head * HeadDim;
#pragma unroll
      for (int j = 0; j < HeadDim / 16; j++) {
        out[j * 16 + g] = s.out[c][j][h];
        out[j * 16 + g + 8] = s.out[c][j][2 + h];
      }
      if (g == 0) meeting.of(warp, head)[0] = s.maximum[c][h], meeting.of(warp, head)[1] = sum;
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
  const Meeting<HeadDim> &meeting;
  T *out;  // of the first head of the group
  int warp, lane;

  /* This warp's heads: the sum over warps; to `out`, or to the slot. */
  DEVICE void merge_warps(float *slot) const {
    for (int head = warp; head < a.group; head += warps) {
      float weight[warps], maximum = -INFINITY, sum = 0.f;
#pragma unroll
      for (int w = 0; w < warps; w++) maximum = fmaxf(maximum, meeting.of(w, head)[0]);
#pragma unroll
      for (int w = 0; w < warps; w++) {
        weight[w] = power_of_two(meeting.of(w, head)[0] - maximum);
        sum += weight[w] * meeting.of(w, head)[1];
      }
      float value[per_lane] = {};
#pragma unroll
      for (int w = 0; w < warps; w++)
#pragma unroll
        for (int i = 0; i < per_lane; i++)
          value[i] += weight[w] * meeting.out(w)[head * HeadDim + lane * per_lane + i];
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
DEVICE void finish_head(const Decode &a, const Walk<tile_tokens(HeadDim)> &w, const Meeting<HeadDim> &meeting,
                        int first_tile, int begin, int end, int total) {
  __shared__ bool is_last;
  const int head_begin = begin - first_tile, head_end = head_begin + w.tiles();  // linear tiles of this head
  const int64_t row = static_cast<int64_t>(w.sequence) * a.kv_heads + w.head;
  const Finish<T, HeadDim> finish{a, meeting, static_cast<T *>(a.out) + row * a.group * HeadDim,
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

}  // namespace minisgl::decode

#endif
