/*
 * gemv_once.cuh: the kernel of gemv.cu for products of which a block's share of W fits into shared memory at once. All of
 * it is on its way before the wait, and x goes to registers after it.
 */
#ifndef MINISGL_GEMV_ONCE_CUH
#define MINISGL_GEMV_ONCE_CUH

#include "gemv.cuh"

namespace minisgl::gemv {

/* Shared memory: W, [chunk of the warp][slice][half chunk][lane]; the sums, which for many tokens take the place of W; with
 * a norm, squares of x, [warp][token], and the norm's weights, [chunk of the warp][warp][64]. */
template <int Slices, int Tokens>
struct OnceLayout {
  using S = Sums<Slices, Tokens>;
  static constexpr int w_stage = Slices * 2 * slot_bytes, norm_stage = warps * chunk * 2;
  static constexpr bool reuses = Tokens > 8;
  static_assert(!reuses || S::bytes <= w_stage);
  __host__ __device__ static int sums_begin(int stages) { return reuses ? 0 : stages * w_stage; }
  __host__ __device__ static int squares_begin(int stages) { return stages * w_stage + (reuses ? 0 : S::bytes); }
  static size_t bytes(int stages, bool norm) {
    return squares_begin(stages) + (norm ? warps * Tokens * 4 + stages * norm_stage : 0);
  }
};

/* So few registers that the next product fits beside this one on a multiprocessor. */
template <class T, int Slices, int Tokens, bool Gated>
__global__ void __maxnreg__(Tokens <= 8 ? 48 : 64) once_kernel(const __grid_constant__ Gemv a) {
  using L = OnceLayout<Slices, Tokens>;
  using S = Sums<Slices, Tokens>;
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  const uint32_t w_slots = shared_address(shared) + threadIdx.x * 16;
  float *sums = reinterpret_cast<float *>(shared + L::sums_begin(a.stages));
  float *warps_squares = reinterpret_cast<float *>(shared + L::squares_begin(a.stages));
  const uint32_t norm_slots = shared_address(warps_squares + warps * Tokens) + warp * chunk * 2;
  // Beside the gated product and the one before it there is no room for a third: its blocks would start when that one ends,
  // which delays the news of the end.
  if (!Gated) dependency_trigger();

  const int slice_begin = blockIdx.x * Slices, slice_end = min(slice_begin + Slices, a.slices);
  const T *w_lane = static_cast<const T *>(a.w) + g * a.k + 8 * t;
  for (int from = warp * chunk, stage = 0; stage < a.stages && from < a.k; from += warps * chunk, stage++) {
    if (a.norm != nullptr && lane < 8)
      copy_async(norm_slots + stage * L::norm_stage + lane * 16, static_cast<const T *>(a.norm) + from + lane * 8);
#pragma unroll
    for (int s = 0; s < Slices; s++) {
      if (slice_begin + s >= slice_end) break;
      const T *source = w_lane + first_row<Gated>(a, slice_begin + s) * a.k + from;
      const uint32_t slot = w_slots + stage * L::w_stage + s * 2 * slot_bytes;
      copy_async(slot, source);
      copy_async(slot + slot_bytes, source + chunk / 2);
    }
  }
  copy_commit();

  constexpr bool single = Slices >= 4;  // chunk a warp: a block takes no more
  constexpr bool prefetches = !single && (Tokens <= 8 || Slices == 1);  // x of the next chunk while one is multiplied
  constexpr bool keeps = !Gated && S::rows * Tokens <= threads;  // a thread has one output: loads early what it adds
  const T *x_lane = static_cast<const T *>(a.x) + g * a.k + 8 * t;
  dependency_wait();
  if (Gated) dependency_trigger();
  uint4 next[S::columns][2];  // a chunk's pieces of x, of tokens g, g + 8, ...
  const auto load_x = [&](int chunk_index) {
#pragma unroll
    for (int column = 0; column < S::columns; column++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const T *source = x_lane + column * 8 * a.k + chunk_index * chunk + half * (chunk / 2);
        next[column][half] = make_uint4(0, 0, 0, 0);
        if (column * 8 + g < a.tokens) next[column][half] = __ldcg(reinterpret_cast<const uint4 *>(source));
      }
  };
  load_x(min(warp, a.chunks - 1));
  float kept = 0.f, squares[S::columns] = {}, c[S::tiles][S::columns][4] = {};
  if (keeps && (a.add || a.bias != nullptr)) kept = added_to<T, S::rows>(a, slice_begin, slice_end);
  copy_wait<0>();
  for (int chunk_index = warp, stage = 0; chunk_index < a.chunks; chunk_index += warps, stage++) {
    uint4 x[S::columns][2];
#pragma unroll
    for (int column = 0; column < S::columns; column++)
#pragma unroll
      for (int half = 0; half < 2; half++) x[column][half] = next[column][half];
    if (prefetches && chunk_index + warps < a.chunks) load_x(chunk_index + warps);
    if (a.norm != nullptr) {
      __syncwarp();  // other lanes copied a part
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint4 weights = load_shared(norm_slots + stage * L::norm_stage + half * chunk + t * 16);
#pragma unroll
        for (int column = 0; column < S::columns; column++) normalize<T>(x[column][half], weights, squares[column]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int tile = 0; tile < S::tiles; tile++) {
        const uint32_t slot = w_slots + stage * L::w_stage + (tile * 4 + half) * slot_bytes;
        const uint4 low = load_shared(slot);
        const uint4 high = 2 * tile + 1 < Slices ? load_shared(slot + 2 * slot_bytes) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int column = 0; column < S::columns; column++) {
          const uint4 &v = x[column][half];
          mma<T>(c[tile][column], low.x, high.x, low.y, high.y, v.x, v.y);
          mma<T>(c[tile][column], low.z, high.z, low.w, high.w, v.z, v.w);
        }
      }
    if (single) break;
    if (!prefetches && chunk_index + warps < a.chunks) load_x(chunk_index + warps);
  }

  if (L::reuses) __syncthreads();  // every warp has read its part of W
  S::store(sums, c, warp, lane);
  if (a.norm != nullptr) {
#pragma unroll
    for (int column = 0; column < S::columns; column++) {
      float all = squares[column];
      all += __shfl_xor_sync(~0u, all, 1);
      all += __shfl_xor_sync(~0u, all, 2);
      if (t == 0 && column * 8 + g < Tokens) warps_squares[warp * Tokens + column * 8 + g] = all;
    }
  }
  __syncthreads();
  finish<T, Slices, Tokens, Gated, keeps>(a, sums, warps_squares, slice_begin, slice_end, kept);
}

}  // namespace minisgl::gemv

#endif
