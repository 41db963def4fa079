/*
 * tiled.cu: out[tokens, n] = x[tokens, k] W[n, k]^T for a few dozen to some hundred tokens on Hopper, where W is still what
 * takes the time, and a library's kernels lose what lies between two products.
 *
 * A block computes `Rows` of W for `Tokens` tokens over a share of k; the blocks of a cluster share a tile's k, and add
 * their sums through distributed shared memory, always in the same order:
 *
 *   grid (n / Rows, tokens / Tokens, splits)      cluster (1, 1, splits)
 *
 *   warp 0 .. (consumers)   products of the tiles in the ring, by warpgroups of 64 rows
 *   last warp (producer)    fills the ring: stage = | W [Rows, 64] | x [Tokens, 64] |, in rows of 128 bytes, swizzled
 *
 * With programmatic dependent launch the ring is filled with W before the op that computes x has ended. W lies in two
 * boxes of Rows / 2 rows, for gated products one of the gate's rows and one of the same rows of up.
 */
#include <algorithm>
#include <cstring>

#include "hopper.cuh"
#include "linear.h"

#pragma nv_diag_suppress 177  // of a Tile, which is unused where the kernel is empty: before Hopper

namespace minisgl {
namespace {

constexpr int step = 64;  // of k, a stage: 128 bytes a row
constexpr int row_bytes = step * 2;
constexpr int max_stages = 16;

struct Tiled {
  void *out;
  const void *bias;
  int n, tokens, steps, stages;  // n: columns of out
  bool float_out, add;
};

template <class T, int Rows, int Tokens>
struct Tile {
  static constexpr int tokens = Tokens, consumers = Rows * 2, threads = consumers + 32;
  static constexpr int w_bytes = Rows * row_bytes, stage_bytes = w_bytes + Tokens * row_bytes;
  static constexpr int sum_stride = Rows + 4;  // floats a token: fragments are stored without bank conflicts
  static constexpr int sum_bytes = Tokens * sum_stride * 4;
  static constexpr size_t shared(int stages) { return std::max(stages * stage_bytes, sum_bytes) + 1024; }
};

/* Four values of type T as the registers that hold them. */
template <class T>
using Quad = std::conditional_t<sizeof(T) == 4, float4, uint2>;

template <class T>
DEVICE Quad<T> to_quad(const float4 &v) {
  if constexpr (sizeof(T) == 4)
    return v;
  else
    return make_uint2(pack<T>(v.x, v.y), pack<T>(v.z, v.w));
}

template <class T>
DEVICE void add_quad(float4 &v, const Quad<T> &quad) {
  const T *values = reinterpret_cast<const T *>(&quad);
  v.x += to_float(values[0]), v.y += to_float(values[1]), v.z += to_float(values[2]), v.w += to_float(values[3]);
}

/* sums[i] = the cluster's sums at addresses[i]; loads of two blocks are under way at a time. */
template <int Count>
DEVICE void sum_peers(float4 (&sums)[Count], const uint32_t (&addresses)[Count], int splits) {
  for (int rank = 0; rank < splits; rank += 2) {
    float4 low[Count], high[Count];
#pragma unroll
    for (int i = 0; i < Count; i++) {
      low[i] = load_peer(addresses[i], rank);
      high[i] = rank + 1 < splits ? load_peer(addresses[i], rank + 1) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
#pragma unroll
    for (int i = 0; i < Count; i++) {
      if (rank == 0) sums[i] = make_float4(0.f, 0.f, 0.f, 0.f);
      add_quad<float>(sums[i], low[i]);
      add_quad<float>(sums[i], high[i]);
    }
  }
}

DEVICE float gate(float g, float up) { return g / (1.f + __expf(-g)) * up; }

/*
 * Writes a tile of out from the sums [tokens, sum_stride] of the cluster's blocks, of which each takes its share. Several
 * quads of columns a thread are under way at a time, since every load takes longer than what is done with it.
 */
template <class T, class Out, class L, int Columns, bool Gated>
DEVICE void finish(const Tiled &a, uint32_t sums, int token_begin, int column_begin) {
  constexpr int quads = Columns / 4, batch = 4;
  const int splits = gridDim.z, stride = splits * L::threads;
  const int live = min(L::tokens, a.tokens - token_begin) * quads;
  for (int base = blockIdx.z * L::threads + threadIdx.x; base < live; base += batch * stride) {
    uint32_t addresses[batch], up_addresses[batch];
    Out *out[batch];
    const T *bias[batch];
    Quad<Out> before[batch];
#pragma unroll
    for (int i = 0; i < batch; i++) {
      const int unit = min(base + i * stride, live - 1), token = unit / quads, column = unit % quads * 4;
      addresses[i] = sums + 4 * (token * L::sum_stride + column);
      up_addresses[i] = addresses[i] + 4 * Columns;
      const bool inside = base + i * stride < live && column_begin + column < a.n;
      out[i] = inside ? static_cast<Out *>(a.out) + static_cast<int64_t>(token_begin + token) * a.n + column_begin +
                            column
                      : nullptr;
      bias[i] = static_cast<const T *>(a.bias) + column_begin + column;
      if (a.add && inside) before[i] = *reinterpret_cast<const Quad<Out> *>(out[i]);
    }
    float4 v[batch], up[batch];
    sum_peers(v, addresses, splits);
    if (Gated) sum_peers(up, up_addresses, splits);
#pragma unroll
    for (int i = 0; i < batch; i++) {
      if (out[i] == nullptr) continue;
      if (Gated)
        v[i] = make_float4(gate(v[i].x, up[i].x), gate(v[i].y, up[i].y), gate(v[i].z, up[i].z), gate(v[i].w, up[i].w));
      if (a.bias != nullptr) add_quad<T>(v[i], *reinterpret_cast<const Quad<T> *>(bias[i]));
      if (a.add) add_quad<Out>(v[i], before[i]);
      *reinterpret_cast<Quad<Out> *>(out[i]) = to_quad<Out>(v[i]);
    }
  }
}

template <class T, int Rows, int Tokens, bool Gated>
__global__ void __launch_bounds__(Tile<T, Rows, Tokens>::threads)
    tiled_kernel(const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map, const Tiled a) {
#ifdef MINISGL_HOPPER
  using L = Tile<T, Rows, Tokens>;
  extern __shared__ char dynamic_shared[];
  __shared__ uint64_t barriers[2 * max_stages];
  const uint32_t ring = (shared_address(dynamic_shared) + 1023) & ~1023u;
  const uint32_t full = shared_address(barriers), empty = full + 8 * max_stages;
  constexpr int columns = Gated ? Rows / 2 : Rows;  // of out
  const int splits = gridDim.z, split = blockIdx.z;
  const int column_begin = blockIdx.x * columns, token_begin = blockIdx.y * Tokens;
  const int step_begin = a.steps * split / splits, steps = a.steps * (split + 1) / splits - step_begin;
  const int ahead = min(steps, a.stages);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);  // the same in every lane, as the compiler can see
  const bool produces = threadIdx.x == L::consumers;

  const auto load_w = [&](int i, int slot) {
    const uint32_t to = ring + slot * L::stage_bytes, barrier = full + 8 * slot;
    barrier_expect(barrier, L::stage_bytes);
    copy_tile(to, w_map, (step_begin + i) * step, column_begin, barrier);
    copy_tile(to + L::w_bytes / 2, w_map, (step_begin + i) * step, column_begin + (Gated ? a.n : Rows / 2), barrier);
  };
  const auto load_x = [&](int i, int slot) {
    copy_tile(ring + slot * L::stage_bytes + L::w_bytes, x_map, (step_begin + i) * step, token_begin, full + 8 * slot);
  };

  dependency_trigger();
  if (produces) {
    prefetch_map(w_map);
    prefetch_map(x_map);
    for (int i = 0; i < a.stages; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, L::consumers / 128);
    }
    barrier_init_fence();
    for (int i = 0; i < ahead; i++) load_w(i, i);
  }
  __syncthreads();
  dependency_wait();
  if (warp >= L::consumers / 32) {
    if (produces) {
      for (int i = 0; i < ahead; i++) load_x(i, i);
      for (int i = ahead, slot = 0, parity = 0; i < steps; i++) {
        barrier_wait(empty + 8 * slot, parity);
        load_w(i, slot);
        load_x(i, slot);
        if (++slot == a.stages) slot = 0, parity ^= 1;
      }
    }
  } else {
    float c[Tokens / 2] = {};
    constexpr int piece = Tokens < 128 ? Tokens : 128;  // tokens an instruction
    const int group = warp / 4;
    int i = 0, slot = 0, parity = 0, before = 0;
#pragma unroll 1
    do {  // a loop that may not run at all would have the compiler copy c while products still write it
      barrier_wait(full + 8 * slot, parity);
      const uint64_t w = tile_descriptor(ring + slot * L::stage_bytes + group * 64 * row_bytes);
      const uint64_t x = tile_descriptor(ring + slot * L::stage_bytes + L::w_bytes);
      warpgroup_begin();
#pragma unroll
      for (int inner = 0; inner < step / 16; inner++)
#pragma unroll
        for (int j = 0; j < Tokens / piece; j++)
          warpgroup_mma<T, piece>(c + j * piece / 2, w + 2 * inner, x + 2 * inner + j * (piece * row_bytes >> 4));
      warpgroup_commit();
      warpgroup_wait<1>();  // so that the tensor cores always have a stage to go on with
      if (i > 0 && threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * before);
      before = slot;
      if (++slot == a.stages) slot = 0, parity ^= 1;
    } while (++i < steps);
    warpgroup_wait<0>();
    asm volatile("bar.sync 1, %0;" ::"n"(L::consumers) : "memory");  // every product is done: the ring is free
    const int lane = threadIdx.x % 32;
    const uint32_t to = ring + 4 * (2 * (lane % 4) * L::sum_stride + threadIdx.x / 32 * 16 + lane / 4);
#pragma unroll
    for (int i = 0; i < Tokens / 2; i++)
      store_shared_word(to + 4 * ((i / 4 * 8 + i % 2) * L::sum_stride + i / 2 % 2 * 8), __float_as_uint(c[i]));
  }
  if (splits > 1)
    cluster_barrier();
  else
    __syncthreads();

  if (a.float_out)
    finish<T, float, L, columns, Gated>(a, ring, token_begin, column_begin);
  else
    finish<T, T, L, columns, Gated>(a, ring, token_begin, column_begin);
  if (splits > 1) cluster_barrier();  // a block's shared memory must outlive its readers
#endif
}

/* A matrix [rows, k] of 16-bit values as boxes of box_rows x step values, swizzled. */
CUtensorMap tensor_map(const void *matrix, int64_t rows, int64_t k, int box_rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
          "cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess) fail("the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(function);
  }();
  CUtensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows)}, strides[1] = {sizes[0] * 2};
  const cuuint32_t box[2] = {step, static_cast<cuuint32_t>(box_rows)}, every[2] = {1, 1};
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void *>(matrix), sizes, strides, box, every,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) fail("cuTensorMapEncodeTiled failed with status %d", static_cast<int>(status));
  return map;
}

/* launch of device.h, by clusters. */
template <class... Parameters, class... Arguments>
void launch_clusters(msgl_device *device, void (*kernel)(Parameters...), dim3 grid, dim3 cluster, int block,
                     size_t shared_bytes, Arguments... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = cluster.x;
  attributes[0].val.clusterDim.y = cluster.y;
  attributes[0].val.clusterDim.z = cluster.z;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = device->stream;
  config.attrs = attributes;
  config.numAttrs = device->weights_written ? 1 : 2;
  device->weights_written = false;
  device->stored_cache = nullptr;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "kernel launch");
}

template <class T, int Rows, int Tokens, bool Gated>
void run(msgl_device *device, const LinearArguments &a, const TiledPlan &plan) {
  using L = Tile<T, Rows, Tokens>;
  const int n = static_cast<int>(a.gated ? a.weight->n / 2 : a.weight->n), columns = Gated ? Rows / 2 : Rows;
  const CUtensorMap w = tensor_map(a.weight->memory.get(), a.weight->n, a.weight->k, Rows / 2);
  const CUtensorMap x = tensor_map(a.x, a.tokens, a.weight->k, Tokens);
  const int steps = static_cast<int>(ceil_div(a.weight->k, step)), splits = std::min(plan.splits, steps);
  const int fitting = plan.shared_bytes / L::stage_bytes;
  const int stages = std::min({std::max(fitting, 2), static_cast<int>(ceil_div(steps, splits)), max_stages});
  const size_t bytes = L::shared(stages);
  const auto kernel = tiled_kernel<T, Rows, Tokens, Gated>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "shared memory");
  const dim3 grid(static_cast<unsigned>(ceil_div(n, columns)),
                  static_cast<unsigned>(ceil_div(a.tokens, Tokens)), splits);
  launch_clusters(device, kernel, grid, dim3(1, 1, splits), L::threads, bytes, w, x,
                  Tiled{a.out, a.bias, n, a.tokens, steps, stages, a.out_dtype == MSGL_F32, a.add});
}

template <class T, int Rows>
void dispatch_tokens(msgl_device *device, const LinearArguments &a, const TiledPlan &plan) {
  const auto call = [&](auto tokens) {
    constexpr int Tokens = decltype(tokens)::value;
    a.gated ? run<T, Rows, Tokens, true>(device, a, plan) : run<T, Rows, Tokens, false>(device, a, plan);
  };
  switch (plan.tokens) {
    case 16: return call(std::integral_constant<int, 16>());
    case 32: return call(std::integral_constant<int, 32>());
    case 64: return call(std::integral_constant<int, 64>());
    case 128: return call(std::integral_constant<int, 128>());
    case 256: return call(std::integral_constant<int, 256>());
    default: fail("no tile has %d tokens", plan.tokens);
  }
}

}  // namespace

bool tiled_supports(const msgl_device *device, const LinearArguments &a) {
  static const bool compiled = strstr(MINISGL_CUDA_ARCHS, "90a") != nullptr;
  return compiled && device->capability == 90 && a.weight->k % 8 == 0 && a.weight->n % 8 == 0;
}

void enqueue_tiled(msgl_device *device, const LinearArguments &a, const TiledPlan &plan) {
  dispatch_half(a.dtype, [&](auto *type) {
    using T = std::remove_pointer_t<decltype(type)>;
    plan.rows == 64 ? dispatch_tokens<T, 64>(device, a, plan) : dispatch_tokens<T, 128>(device, a, plan);
  });
}

}  // namespace minisgl
