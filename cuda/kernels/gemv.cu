/*
 * gemv.cu: out[tokens, n] = x[tokens, k] W[n, k]^T for 1 to 8 tokens, as fast as W can be read.
 *
 * W is cut into slices of 8 rows, and k into chunks of 64. A block has 16 warps and works on up to `Slices` slices at a
 * time (a group); warp w takes chunks w, w + 16, ... of the group's rows:
 *
 *              k:  | chunk 0 | chunk 1 | ... | chunk 15 | chunk 16 | ...
 *   slice 0        |  warp 0 |  warp 1 | ... |  warp 15 |  warp 0  | ...
 *   slice 1        |  warp 0 |  warp 1 | ...
 *
 * so that each row is read in order, and the 16 partial sums of an output are added through shared memory at the group's
 * end. Products are m16n8k16 with two slices as m and the tokens as n. Every lane copies exactly the 16-byte pieces that
 * it will multiply, asynchronously, into slots that are its own: the loop needs no barrier and no swizzle.
 *
 * A piece of a lane: row g = lane / 4 of a slice, 8 values of k from 8 (lane % 4) on, of each half chunk. Sums do not
 * depend on the order of k as long as W and x use the same (see attention_decode.cu).
 *
 * With programmatic dependent launch the copies of W start before the op that computes x has ended.
 *
 * What stands around a product can be part of it:
 *   norm   x is RMS-normalised: each piece of x is multiplied by the norm's weight as it is used, the sum of its squares
 *          goes along, and outputs are scaled by the reciprocal root at the end
 *   add    outputs are added to what `out` holds
 *   Gated  W is [gate; up]; slices alternate between the two, and the output is silu(gate) * up
 */
#include <algorithm>

#include "chain.h"
#include "linear.h"
#include "mma.cuh"

namespace minisgl {
namespace {

constexpr int warps = 16, threads = warps * 32, slice_rows = 8, chunk = 64, max_tokens = 8;
constexpr int slot_bytes = threads * 16;  // one 16-byte piece of every lane

struct Gemv {
  void *out;
  const void *x, *w, *bias, *norm;
  int64_t k;
  int n, slices, chunks, tokens, stages;  // n: columns of out
  float epsilon;
  bool float_out, add;
};

/* Shared memory: stages of W, [stage][slice][half chunk][lane]; of the norm's weights, [stage][warp][chunk]; of x,
 * [stage][half chunk][lane] or, for one token, [stage][warp][chunk]; squares of x, [warp][token]; partial sums,
 * [buffer][warp][token][row]. */
template <int Slices, int Tokens>
struct Layout {
  static constexpr int w_stage = Slices * 2 * slot_bytes;
  static constexpr int x_stage = Tokens == 1 ? warps * chunk * 2 : 2 * slot_bytes;
  static constexpr int norm_stage = warps * chunk * 2, stage = w_stage + norm_stage + x_stage;
  static constexpr int rows = Slices * slice_rows;
  static constexpr int sums = warps * rows * Tokens;  // floats of one buffer
  static size_t bytes(int stages, int buffers) {
    return static_cast<size_t>(stages * stage) + (buffers * sums + warps * Tokens) * sizeof(float);
  }
};

/* A block's slices, cut into groups as even as can be; pairs of gate and up stay together. */
template <int Slices, int Stages, bool Gated>
struct Groups {
  static constexpr int unit = Gated ? 2 : 1;
  int first, units, count;

  DEVICE explicit Groups(const Gemv &a) {
    const int all = a.slices / unit, block = blockIdx.x, blocks = gridDim.x;
    if (Stages == 0) {  // one group a block
      first = block * (Slices / unit);
      units = min(Slices / unit, all - first);
      count = 1;
    } else {
      first = block * all / blocks;
      units = (block + 1) * all / blocks - first;
      count = (units * unit + Slices - 1) / Slices;
    }
  }
  /* The first slice of a group; that of group + 1 is where it ends. */
  DEVICE int begin(int group) const {
    return unit * (first + (Stages == 0 ? group * units : group * units / count));
  }
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

DEVICE __nv_bfloat162 multiply(__nv_bfloat162 a, __nv_bfloat162 b) { return __hmul2(a, b); }
DEVICE __half2 multiply(__half2 a, __half2 b) { return __hmul2(a, b); }
DEVICE float2 to_floats(__nv_bfloat162 a) { return __bfloat1622float2(a); }
DEVICE float2 to_floats(__half2 a) { return __half22float2(a); }

/* Multiplies two values of x by the norm's weights and adds their squares to `squares`. */
template <class T>
DEVICE uint32_t normalize(uint32_t x, uint32_t weights, float &squares) {
  using Pair = std::conditional_t<std::is_same_v<T, bf16>, __nv_bfloat162, __half2>;
  const Pair pair = *reinterpret_cast<const Pair *>(&x);
  const float2 values = to_floats(pair);
  squares += values.x * values.x + values.y * values.y;
  const Pair product = multiply(pair, *reinterpret_cast<const Pair *>(&weights));
  return *reinterpret_cast<const uint32_t *>(&product);
}

/* Bias, and what `out` holds, of this thread's output in a group of `Rows` rows: token threadIdx / Rows, row
 * threadIdx % Rows. */
template <class T, int Rows>
DEVICE float added_to(const Gemv &a, int slice_begin, int slice_end) {
  const int row = threadIdx.x % Rows, token = threadIdx.x / Rows, column = slice_begin * slice_rows + row;
  if (slice_begin + row / slice_rows >= slice_end || token >= a.tokens) return 0.f;
  float value = a.bias == nullptr ? 0.f : to_float(static_cast<const T *>(a.bias)[column]);
  if (a.add) value += to_float(static_cast<const T *>(a.out)[static_cast<int64_t>(token) * a.n + column]);
  return value;
}

DEVICE float silu(float x) { return x / (1.f + __expf(-x)); }

/* Stages: of the ring; 0 where all of the block's share fits into a.stages, and is waited for at once. */
template <class T, int Slices, int Tokens, int Stages, bool Gated>
__global__ void __maxnreg__(48) gemv_kernel(const __grid_constant__ Gemv a) {
  using L = Layout<Slices, Tokens>;
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  const uint32_t w_ring = shared_address(shared) + threadIdx.x * 16;
  const uint32_t norm_ring = shared_address(shared) + a.stages * L::w_stage + warp * chunk * 2;
  const uint32_t x_ring = shared_address(shared) + a.stages * (L::w_stage + L::norm_stage) +
                          (Tokens == 1 ? warp * chunk * 2 : threadIdx.x * 16);
  float *warps_squares = reinterpret_cast<float *>(shared + a.stages * L::stage);
  float *sums = warps_squares + warps * Tokens;
  // Beside the gated product and the one before it there is no room for a third: its blocks would start when that one ends,
  // which delays the news of the end.
  constexpr bool late = Gated && Stages == 0;
  if (!late) dependency_trigger();

  using BlockGroups = Groups<Slices, Stages, Gated>;
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
      const int row = Gated ? slice % 2 * a.n + slice / 2 * slice_rows : slice * slice_rows;
      const uint32_t slot = w_ring + stage * L::w_stage + s * 2 * slot_bytes;
      copy_async(slot, w_lane + row * a.k + from);
      copy_async(slot + slot_bytes, w_lane + row * a.k + from + chunk / 2);
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
  for (int stage = 0; stage < a.stages; stage++) {
    if (ahead.group < groups.count) {
      copy_w(ahead, stage);
      ahead.advance(groups, a, warp);
    }
    copy_commit();
  }
  dependency_wait();
  if (late) dependency_trigger();
  ahead = start;
  for (int stage = 0; stage < a.stages; stage++) {
    if (ahead.group < groups.count) {
      copy_x(ahead, stage);
      ahead.advance(groups, a, warp);
    }
    copy_commit();
  }

  constexpr int tiles = (Slices + 1) / 2, unit = Gated ? 2 : 1;
  // What a thread's output is added to is loaded along with x where the thread has one output.
  constexpr bool prefetches = !Gated && Stages == 0 && L::rows * Tokens <= threads;
  float kept = 0.f;
  if (prefetches && (a.add || a.bias != nullptr)) kept = added_to<T, L::rows>(a, groups.begin(0), groups.begin(1));
  int stage = 0, buffer = 0;
  float squares = 0.f;  // of this lane's pieces of token g
  for (int group = 0; group < groups.count; group++) {
    float c[tiles][4] = {};
    for (int chunk_index = warp; chunk_index < a.chunks; chunk_index += warps) {
      // Groups of copies are W of all stages, x of all stages, then one a turn: the wait is the same in every turn.
      copy_wait<Stages == 0 ? 0 : Stages - 1>();
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
          x.x = normalize<T>(x.x, weights.x, squares);
          x.y = normalize<T>(x.y, weights.y, squares);
          x.z = normalize<T>(x.z, weights.z, squares);
          x.w = normalize<T>(x.w, weights.w, squares);
        }
#pragma unroll
        for (int tile = 0; tile < tiles; tile++) {
          const uint32_t slot = w_ring + stage * L::w_stage + (tile * 4 + half) * slot_bytes;
          const uint4 low = load_shared(slot);
          const uint4 high = 2 * tile + 1 < Slices ? load_shared(slot + 2 * slot_bytes) : make_uint4(0, 0, 0, 0);
          mma<T>(c[tile], low.x, high.x, low.y, high.y, x.x, x.y);
          mma<T>(c[tile], low.z, high.z, low.w, high.w, x.z, x.w);
        }
      }
      if (Tokens == 1 || a.norm != nullptr) __syncwarp();
      if (ahead.group < groups.count) {
        copy_w(ahead, stage);
        copy_x(ahead, stage);
        ahead.advance(groups, a, warp);
      }
      copy_commit();
      stage = stage + 1 == a.stages ? 0 : stage + 1;
    }

    float *mine = sums + buffer * L::sums + warp * L::rows * Tokens;
#pragma unroll
    for (int slice = 0; slice < Slices; slice++) {
      const float *pair = c[slice / 2] + slice % 2 * 2;  // of row g and tokens 2t, 2t + 1
      if (Tokens > 1 || t == 0) mine[2 * t * L::rows + slice * slice_rows + g] = pair[0];
      if (Tokens > 1) mine[(2 * t + 1) * L::rows + slice * slice_rows + g] = pair[1];
    }
    if (a.norm != nullptr && group == 0) {
      squares += __shfl_xor_sync(~0u, squares, 1);
      squares += __shfl_xor_sync(~0u, squares, 2);
      if (Tokens == 1)
        for (int offset = 4; offset < 32; offset <<= 1) squares += __shfl_xor_sync(~0u, squares, offset);
      if (t == 0 && g < Tokens) warps_squares[warp * Tokens + g] = squares;
    }
    __syncthreads();
    const int slice_begin = groups.begin(group), slice_end = groups.begin(group + 1);
    for (int i = threadIdx.x; i < L::rows / unit * Tokens; i += threads) {
      const int row = i % (L::rows / unit), token = i / (L::rows / unit), slice = row / slice_rows;
      if (slice_begin + unit * slice >= slice_end || token >= a.tokens) continue;
      const float *partial = sums + buffer * L::sums + token * L::rows + unit * slice * slice_rows + row % slice_rows;
      float sum = 0.f, up = 0.f, scale = 1.f;
#pragma unroll
      for (int w = 0; w < warps; w++) {
        sum += partial[w * L::rows * Tokens];
        if (Gated) up += partial[w * L::rows * Tokens + slice_rows];
      }
      if (a.norm != nullptr) {
        float all = 0.f;
#pragma unroll
        for (int w = 0; w < warps; w++) all += warps_squares[w * Tokens + token];
        scale = rsqrtf(all / a.k + a.epsilon);
      }
      sum *= scale;
      if (Gated) sum = silu(sum) * (up * scale);
      const int column = slice_begin / unit * slice_rows + row;
      const int64_t index = static_cast<int64_t>(token) * a.n + column;
      if (prefetches) sum += kept;
      else if (a.bias != nullptr) sum += to_float(static_cast<const T *>(a.bias)[column]);
      if (a.float_out) {
        static_cast<float *>(a.out)[index] = sum;
      } else {
        T *out = static_cast<T *>(a.out) + index;
        *out = from_float<T>(!prefetches && a.add ? sum + to_float(*out) : sum);
      }
    }
    buffer ^= 1;  // so one barrier a group is enough
  }
}

/* How a shape is laid over the device. */
struct Plan {
  int slices, stages, grid;
  bool streams;  // through a ring; otherwise a block's whole share is on its way before the wait

  int buffers() const { return streams ? 2 : 1; }
};

/* Stages of a ring, as many as fit into shared memory beside x. */
constexpr int ring_stages(int slices, int tokens) { return tokens == 1 && slices <= 4 ? 3 : 2; }

Plan choose(const msgl_device *device, const LinearArguments &a) {
  const int slices = static_cast<int>(a.weight->n / slice_rows), unit = a.gated ? 2 : 1;
  const int a_warp = static_cast<int>(ceil_div(a.weight->k / chunk, warps));
  const int a_block = unit * static_cast<int>(ceil_div(slices / unit, device->multiprocessors));
  // At most 6 pieces of 16 KiB of W a block, so that the next kernel fits beside it on a multiprocessor.
  if (a_block * a_warp <= 6) return {a_block, a_warp, static_cast<int>(ceil_div(slices, a_block)), false};
  // A whole multiprocessor otherwise; four slices a group, or all of five or six at once.
  const int group = a.tokens == 1 && (a_block == 5 || a_block == 6) ? a_block : 4;
  return {group, ring_stages(group, a.tokens), std::min(slices / unit, device->multiprocessors), true};
}

template <int Value>
using Constant = std::integral_constant<int, Value>;

/* Calls f(kernel, shared memory) for a plan. */
template <class T, int Tokens, bool Gated, class F>
void dispatch_slices(const Plan &plan, F f) {
  const auto call = [&](auto slices, auto stages) {
    constexpr int Slices = decltype(slices)::value, Stages = decltype(stages)::value;
    f(gemv_kernel<T, Slices, Tokens, Stages, Gated>, Layout<Slices, Tokens>::bytes(plan.stages, plan.buffers()));
  };
  constexpr Constant<0> at_once;
  if (plan.streams) {
    if (plan.slices == 4) return call(Constant<4>(), Constant<ring_stages(4, Tokens)>());
    if constexpr (Tokens == 1) {
      if (plan.slices == 6) return call(Constant<6>(), Constant<ring_stages(6, 1)>());
      if constexpr (!Gated) return call(Constant<5>(), Constant<ring_stages(5, 1)>());
    }
    fail("no kernel streams %d slices", plan.slices);
  }
  if (plan.slices == 2) return call(Constant<2>(), at_once);
  if (plan.slices == 4) return call(Constant<4>(), at_once);
  if (plan.slices == 6) return call(Constant<6>(), at_once);
  if constexpr (!Gated) {
    if (plan.slices == 1) return call(Constant<1>(), at_once);
    if (plan.slices == 3) return call(Constant<3>(), at_once);
    if (plan.slices == 5) return call(Constant<5>(), at_once);
  }
  fail("no kernel for %d slices", plan.slices);
}

template <class F>
void dispatch(const Plan &plan, const LinearArguments &a, F f) {
  dispatch_half(a.dtype, [&](auto *type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (a.gated) return a.tokens == 1 ? dispatch_slices<T, 1, true>(plan, f) : dispatch_slices<T, max_tokens, true>(plan, f);
    a.tokens == 1 ? dispatch_slices<T, 1, false>(plan, f) : dispatch_slices<T, max_tokens, false>(plan, f);
  });
}

}  // namespace

bool gemv_supports(const msgl_device *device, const LinearArguments &a) {
  if (a.tokens > max_tokens || a.weight->n % (a.gated ? 2 * slice_rows : slice_rows) != 0) return false;
  if (a.weight->k % chunk != 0 || reinterpret_cast<uintptr_t>(a.x) % 16 != 0) return false;
  bool fits = false;
  dispatch(choose(device, a), a, [&](auto, size_t bytes) { fits = bytes <= static_cast<size_t>(device->shared_per_block); });
  return fits;
}

void enqueue_gemv(msgl_device *device, const LinearArguments &a) {
  const Plan plan = choose(device, a);
  const Gemv gemv{a.out,
                  a.x,
                  a.weight->memory.get(),
                  a.bias,
                  a.norm,
                  a.weight->k,
                  static_cast<int>(a.gated ? a.weight->n / 2 : a.weight->n),
                  static_cast<int>(a.weight->n / slice_rows),
                  static_cast<int>(a.weight->k / chunk),
                  a.tokens,
                  plan.stages,
                  a.epsilon,
                  a.out_dtype == MSGL_F32,
                  a.add};
  dispatch(plan, a, [&](auto kernel, size_t bytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "shared memory");
    prefer_shared_memory(kernel);
    const bool settled = chain_settled(device);
    launch(device, Follow::dependent, kernel, plan.grid, threads, bytes, gemv);
    chain_continue(device, settled);
  });
}

}  // namespace minisgl
