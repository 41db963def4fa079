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
 */
#include <algorithm>

#include "linear.h"
#include "mma.cuh"

namespace minisgl {
namespace {

constexpr int warps = 16, threads = warps * 32, slice_rows = 8, chunk = 64, max_tokens = 8;
constexpr int slot_bytes = threads * 16;  // one 16-byte piece of every lane

struct Gemv {
  void *out;
  const void *x, *w, *bias;
  int64_t k;
  int n, slices, chunks, tokens, stages;
  bool float_out;
};

/* Shared memory: stages of W, [stage][slice][half chunk][lane]; stages of x, [stage][half chunk][lane] or, for one token,
 * [stage][warp][half chunk][4]; partial sums, [buffer][warp][token][row]. */
template <int Slices, int Tokens>
struct Layout {
  static constexpr int w_stage = Slices * 2 * slot_bytes;
  static constexpr int x_stage = Tokens == 1 ? warps * 2 * 4 * 16 : 2 * slot_bytes;
  static constexpr int rows = Slices * slice_rows;
  static constexpr int sums = warps * rows * Tokens;  // floats of one buffer
  static size_t bytes(int stages, int buffers) {
    return static_cast<size_t>(stages * (w_stage + x_stage)) + buffers * sums * sizeof(float);
  }
};

/* The walk of a warp over its chunks: chunk by chunk, then the block's next group. */
template <int Slices>
struct Walk {
  int slice, end, chunk_index, chunks;

  DEVICE bool done() const { return slice >= end; }
  DEVICE void advance(int warp) {
    chunk_index += warps;
    if (chunk_index < chunks) return;
    chunk_index = warp;
    slice += Slices;
  }
};

/* Stages: of the ring; 0 where all of the block's share fits into a.stages, and is waited for at once. */
template <class T, int Slices, int Tokens, int Stages>
__global__ void __maxnreg__(48) gemv_kernel(const __grid_constant__ Gemv a) {
  using L = Layout<Slices, Tokens>;
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  const uint32_t w_ring = shared_address(shared) + threadIdx.x * 16;
  const uint32_t x_ring = shared_address(shared) + a.stages * L::w_stage +
                          (Tokens == 1 ? warp * 2 * 4 * 16 + t * 16 : threadIdx.x * 16);
  float *sums = reinterpret_cast<float *>(shared + a.stages * (L::w_stage + L::x_stage));
  constexpr int x_half = Tokens == 1 ? 4 * 16 : slot_bytes;  // bytes between the halves of a chunk of x
  dependency_trigger();

  // This block's slices; the blocks' shares differ by one slice at most.
  const int first = static_cast<int>(static_cast<int64_t>(blockIdx.x) * a.slices / gridDim.x);
  const int end = static_cast<int>(static_cast<int64_t>(blockIdx.x + 1) * a.slices / gridDim.x);
  const T *w_lane = static_cast<const T *>(a.w) + g * a.k + 8 * t;
  const T *x_lane = static_cast<const T *>(a.x) + g * a.k + 8 * t;
  const bool has_x = g < a.tokens;

  const auto copy_w = [&](const Walk<Slices> &walk, int stage) {
#pragma unroll
    for (int s = 0; s < Slices; s++) {
      if (walk.slice + s >= end) break;
      const T *source = w_lane + (walk.slice + s) * slice_rows * a.k + walk.chunk_index * chunk;
      const uint32_t slot = w_ring + stage * L::w_stage + s * 2 * slot_bytes;
      copy_async(slot, source);
      copy_async(slot + slot_bytes, source + chunk / 2);
    }
  };
  const auto copy_x = [&](const Walk<Slices> &walk, int stage) {
    if (!has_x) return;
    const T *source = x_lane + walk.chunk_index * chunk;
    const uint32_t slot = x_ring + stage * L::x_stage;
    copy_async(slot, source);
    copy_async(slot + x_half, source + chunk / 2);
  };

  const Walk<Slices> start{warp < a.chunks ? first : end, end, warp, a.chunks};
  Walk<Slices> ahead = start;
  for (int stage = 0; stage < a.stages; stage++) {
    if (!ahead.done()) {
      copy_w(ahead, stage);
      ahead.advance(warp);
    }
    copy_commit();
  }
  dependency_wait();
  ahead = start;
  for (int stage = 0; stage < a.stages; stage++) {
    if (!ahead.done()) {
      copy_x(ahead, stage);
      ahead.advance(warp);
    }
    copy_commit();
  }

  constexpr int tiles = (Slices + 1) / 2;
  int stage = 0, buffer = 0;
  for (int group = first; group < end; group += Slices) {
    float c[tiles][4] = {};
    for (int chunk_index = warp; chunk_index < a.chunks; chunk_index += warps) {
      // Groups of copies are W of all stages, x of all stages, then one a turn: the wait is the same in every turn.
      copy_wait<Stages == 0 ? 0 : Stages - 1>();
#pragma unroll
      for (int half = 0; half < 2; half++) {
        uint4 x = make_uint4(0, 0, 0, 0);
        if (has_x) x = load_shared(x_ring + stage * L::x_stage + half * x_half);
#pragma unroll
        for (int tile = 0; tile < tiles; tile++) {
          const uint32_t slot = w_ring + stage * L::w_stage + (tile * 4 + half) * slot_bytes;
          const uint4 low = load_shared(slot);
          const uint4 high = 2 * tile + 1 < Slices ? load_shared(slot + 2 * slot_bytes) : make_uint4(0, 0, 0, 0);
          mma<T>(c[tile], low.x, high.x, low.y, high.y, x.x, x.y);
          mma<T>(c[tile], low.z, high.z, low.w, high.w, x.z, x.w);
        }
      }
      if (!ahead.done()) {
        copy_w(ahead, stage);
        copy_x(ahead, stage);
        ahead.advance(warp);
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
    __syncthreads();
    for (int i = threadIdx.x; i < L::rows * Tokens; i += threads) {
      const int row = i % L::rows, token = i / L::rows, column = group * slice_rows + row;
      if (group + row / slice_rows >= end || token >= a.tokens) continue;
      float sum = a.bias != nullptr ? to_float(static_cast<const T *>(a.bias)[column]) : 0.f;
#pragma unroll
      for (int w = 0; w < warps; w++) sum += sums[buffer * L::sums + w * L::rows * Tokens + i];
      const int64_t index = static_cast<int64_t>(token) * a.n + column;
      if (a.float_out)
        static_cast<float *>(a.out)[index] = sum;
      else
        static_cast<T *>(a.out)[index] = from_float<T>(sum);
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

constexpr int ring_stages = 2;
constexpr int ring_slices(int tokens) { return tokens == 1 ? 3 : 4; }  // more rows a group: x is read less often

Plan choose(const msgl_device *device, const LinearArguments &a) {
  const int slices = static_cast<int>(a.weight->n / slice_rows);
  const int a_warp = static_cast<int>(ceil_div(a.weight->k / chunk, warps));
  const int a_block = static_cast<int>(ceil_div(slices, device->multiprocessors));
  // At most 6 pieces of 16 KiB of W a block, so that the next kernel fits beside it on a multiprocessor.
  if (a_block * a_warp <= 6) return {a_block, a_warp, static_cast<int>(ceil_div(slices, a_block)), false};
  const int blocks = (a.tokens == 1 ? 2 : 1) * device->multiprocessors;
  return {ring_slices(a.tokens), ring_stages, std::min(slices, blocks), true};
}

/* Calls f(kernel, shared memory) for a plan. */
template <class F>
void dispatch(const Plan &plan, const LinearArguments &a, F f) {
  dispatch_half(a.dtype, [&](auto *type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto of_tokens = [&](auto tokens) {
      constexpr int Tokens = decltype(tokens)::value;
      const auto of_slices = [&](auto slices, auto stages) {
        constexpr int Slices = decltype(slices)::value, Stages = decltype(stages)::value;
        f(gemv_kernel<T, Slices, Tokens, Stages>, Layout<Slices, Tokens>::bytes(plan.stages, plan.buffers()));
      };
      using std::integral_constant;
      constexpr integral_constant<int, 0> at_once;
      if (plan.streams)
        return of_slices(integral_constant<int, ring_slices(Tokens)>(), integral_constant<int, ring_stages>());
      switch (plan.slices) {
        case 1:
          return of_slices(integral_constant<int, 1>(), at_once);
        case 2:
          return of_slices(integral_constant<int, 2>(), at_once);
        case 3:
          return of_slices(integral_constant<int, 3>(), at_once);
        case 4:
          return of_slices(integral_constant<int, 4>(), at_once);
        case 5:
          return of_slices(integral_constant<int, 5>(), at_once);
        default:
          return of_slices(integral_constant<int, 6>(), at_once);
      }
    };
    a.tokens == 1 ? of_tokens(std::integral_constant<int, 1>()) : of_tokens(std::integral_constant<int, max_tokens>());
  });
}

}  // namespace

bool gemv_supports(const msgl_device *device, const LinearArguments &a) {
  if (a.tokens > max_tokens || a.weight->n % slice_rows != 0 || a.weight->k % chunk != 0) return false;
  if (reinterpret_cast<uintptr_t>(a.x) % 16 != 0) return false;
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
                  a.weight->k,
                  static_cast<int>(a.weight->n),
                  static_cast<int>(a.weight->n / slice_rows),
                  static_cast<int>(a.weight->k / chunk),
                  a.tokens,
                  plan.stages,
                  a.out_dtype == MSGL_F32};
  dispatch(plan, a, [&](auto kernel, size_t bytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "shared memory");
    launch(device, Follow::dependent, kernel, plan.grid, threads, bytes, gemv);
  });
}

}  // namespace minisgl
