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

/*
 * Where the blocks that share a head meet: `partials`, [slot][head of the group] (see Partial), where a
 * block has two slots: 2 * block for a head that began in an earlier block, 2 * block + 1 for one that it has the begin of.
 *
 * A word of it is `empty` until its value arrives, and is made so again by the one block that reads it, so neither flags
 * nor fences are needed. That block is the last of those that share the head: it waits for blocks before it, which have
 * started before it did, and the grid is never larger than the device holds at once.
 */
constexpr uint32_t empty = ~0u;

template <int HeadDim>
struct Partial {
  static constexpr int words = HeadDim + 4;  // of a head in a slot; two are unused
  static constexpr int maximum = HeadDim, sum = HeadDim + 1;

  DEVICE static uint32_t *of(const Decode &a, int slot, int head) {
    return a.partials + (static_cast<int64_t>(slot) * a.group + head) * words;
  }
  DEVICE static void put(uint32_t *destination, float a, float b) {
    // The largest word, a NaN, is the empty one: it becomes another NaN.
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(destination),
                 "r"(min(__float_as_uint(a), empty - 1)), "r"(min(__float_as_uint(b), empty - 1))
                 : "memory");
  }
  DEVICE static uint4 peek(const uint32_t *source) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(source)
                 : "memory");
    return v;
  }
  DEVICE static uint2 peek_statistics(const uint32_t *source) {
    uint2 v;
    asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(source) : "memory");
    return v;
  }
};

/* Where two dimensions of a head's output go. */
template <class T, int HeadDim>
DEVICE uint32_t *output_of(const Decode &a, int sequence, int kv_head, int head, int dimension) {
  const int64_t row = (static_cast<int64_t>(sequence) * a.kv_heads + kv_head) * a.group + head;
  return reinterpret_cast<uint32_t *>(static_cast<T *>(a.out) + row * HeadDim + dimension);
}

/* The sum over the block's warps: to `out` if the head is complete, else to a slot. A thread has two dimensions. */
template <class T, int HeadDim>
DEVICE void merge_warps(const Decode &a, int sequence, int kv_head, const Meeting<HeadDim> &meeting, bool complete,
                        bool begins) {
  constexpr int pairs = HeadDim / 2;
  for (int i = threadIdx.x; i < a.group * pairs; i += warps * 32) {
    const int head = i / pairs, dimension = i % pairs * 2;
    float maximum = -INFINITY, sum = 0.f;
    float2 value = make_float2(0.f, 0.f);
#pragma unroll
    for (int w = 0; w < warps; w++) maximum = fmaxf(maximum, meeting.of(w, head)[0]);
#pragma unroll
    for (int w = 0; w < warps; w++) {
      const float weight = power_of_two(meeting.of(w, head)[0] - maximum);
      const float2 part = *reinterpret_cast<const float2 *>(meeting.out(w) + head * HeadDim + dimension);
      sum += weight * meeting.of(w, head)[1];
      value.x += weight * part.x, value.y += weight * part.y;
    }
    if (complete) {
      *output_of<T, HeadDim>(a, sequence, kv_head, head, dimension) = pack<T>(value.x / sum, value.y / sum);
      continue;
    }
    using P = Partial<HeadDim>;
    uint32_t *slot = P::of(a, 2 * blockIdx.x + (begins ? 1 : 0), head);
    P::put(slot + dimension, value.x, value.y);
    if (dimension == 0) P::put(slot + P::maximum, maximum, sum);
  }
}

/*
 * The sum over the blocks that share a head, from `first` to this one, which is the last.
 * A warp has 64 dimensions of a head of the group. Its lower half reads every other block, its upper half the rest, a lane
 * four dimensions: all that a warp waits for is on its way at once, and the code, which the multiprocessor has to fetch
 * each time anew, is short.
 */
template <class T, int HeadDim>
DEVICE void merge_blocks(const Decode &a, int sequence, int kv_head, int first) {
  using P = Partial<HeadDim>;
  constexpr int segments = HeadDim / 64, reads = 8, batch = 2 * reads;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = lane / 16, last = blockIdx.x;
  for (int item = warp; item < a.group * segments; item += warps) {
    const int head = item / segments, dimension = item % segments * 64 + lane % 16 * 4;
    const auto slot_of = [&](int block) { return P::of(a, 2 * block + (block == first ? 1 : 0), head); };
    float maximum = -INFINITY, sum = 0.f, value[4] = {};
    for (int from = first; from <= last; from += batch) {
      const int count = min(batch, last - from + 1);
      uint4 parts[reads] = {};
      uint2 pair = make_uint2(__float_as_uint(-INFINITY), 0);
      bool waits;
      do {
        waits = false;
#pragma unroll
        for (int i = 0; i < reads; i++)
          if (2 * i + half < count) parts[i] = P::peek(slot_of(from + 2 * i + half) + dimension);
        if (lane < count) pair = P::peek_statistics(slot_of(from + lane) + P::maximum);
#pragma unroll
        for (int i = 0; i < reads; i++)
          waits |= max(max(parts[i].x, parts[i].y), max(parts[i].z, parts[i].w)) == empty;
        waits |= max(pair.x, pair.y) == empty;
      } while (__any_sync(~0u, waits));
      float next = __uint_as_float(pair.x);
#pragma unroll
      for (int offset = 16; offset > 0; offset >>= 1) next = fmaxf(next, __shfl_xor_sync(~0u, next, offset));
      next = fmaxf(next, maximum);
      const float rescale = power_of_two(maximum - next), weight = power_of_two(__uint_as_float(pair.x) - next);
      maximum = next;
      sum = sum * rescale + warp_sum(weight * __uint_as_float(pair.y));
#pragma unroll
      for (int i = 0; i < 4; i++) value[i] *= rescale;
#pragma unroll
      for (int i = 0; i < reads; i++) {
        const float w = __shfl_sync(~0u, weight, 2 * i + half);
        value[0] += w * __uint_as_float(parts[i].x), value[1] += w * __uint_as_float(parts[i].y);
        value[2] += w * __uint_as_float(parts[i].z), value[3] += w * __uint_as_float(parts[i].w);
        if (2 * i + half < count)
          *reinterpret_cast<uint4 *>(slot_of(from + 2 * i + half) + dimension) = make_uint4(empty, empty, empty, empty);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) value[i] = (value[i] + __shfl_xor_sync(~0u, value[i], 16)) / sum;
    uint32_t *out = output_of<T, HeadDim>(a, sequence, kv_head, head, dimension);
    if (half == 0) *reinterpret_cast<uint2 *>(out) = make_uint2(pack<T>(value[0], value[1]), pack<T>(value[2], value[3]));
  }
  __syncthreads();  // every warp has read the statistics
  for (int i = threadIdx.x; i < (last - first + 1) * a.group; i += warps * 32) {
    const int block = first + i / a.group;
    *reinterpret_cast<uint2 *>(P::of(a, 2 * block + (block == first ? 1 : 0), i % a.group) + P::maximum) =
        make_uint2(empty, empty);
  }
}

}  // namespace minisgl::decode

#endif
