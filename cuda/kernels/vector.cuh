/*
 * vector.cuh: what kernels share: 16-byte vectors of bf16 or f16, reductions, and programmatic dependent launch.
 *
 * Programmatic dependent launch (PDL). A dependent kernel may start once every block of the one before has called
 * dependency_trigger() or ended, and dependency_wait() returns when that one has ended and its writes are visible. Two
 * kinds of kernels keep the chain safe:
 *  - ordinary kernels wait first and trigger after. So when the next kernel starts, all before this one has ended.
 *  - those that a product follows (norms, SiLU), and products of few tokens, trigger at once; before its wait a product
 *    reads weights only, which no op ever writes.
 * A rotary store and the attention after it join the second kind where chain.h says that this is safe.
 * Every dependent kernel must wait, in every block, or the order of the chain is lost.
 */
#ifndef MINISGL_VECTOR_CUH
#define MINISGL_VECTOR_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "device.h"

namespace minisgl {

using bf16 = __nv_bfloat16;
using f16 = __half;

#define DEVICE __device__ __forceinline__

DEVICE void dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

DEVICE void dependency_trigger() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __bfloat162float(x); }
DEVICE float to_float(f16 x) { return __half2float(x); }

template <class T>
DEVICE T from_float(float x);
template <>
DEVICE float from_float<float>(float x) {
  return x;
}
template <>
DEVICE bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
DEVICE f16 from_float<f16>(float x) {
  return __float2half_rn(x);
}

/* Consecutive values, loaded and stored at once: 16 bytes of bf16 or f16, or, where rows are not multiples of that, one. */
template <class T, int Size = 16 / sizeof(T)>
struct alignas(Size * sizeof(T)) Vector {
  static_assert(Size == 1 || Size * sizeof(T) == 16);
  static constexpr int size = Size;
  T value[size];

  DEVICE static Vector load(const T *source) {
    Vector v;
    if constexpr (Size == 1)
      v.value[0] = *source;
    else
      *reinterpret_cast<uint4 *>(&v) = *reinterpret_cast<const uint4 *>(source);
    return v;
  }
  DEVICE void store(T *destination) const {
    if constexpr (Size == 1)
      *destination = value[0];
    else
      *reinterpret_cast<uint4 *>(destination) = *reinterpret_cast<const uint4 *>(this);
  }
};

DEVICE float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

/* The sum over a block of whole warps, given to every thread. scratch: 32 floats of shared memory, of one use only. */
DEVICE float block_sum(float value, float *scratch) {
  value = warp_sum(value);
  const int warps = blockDim.x / 32;
  if (warps == 1) return value;
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  return warp_sum(lane < warps ? scratch[lane] : 0.f);
}

/* Calls f with a null pointer to the widest Vector of T in which rows of `size` values can be cut. */
template <class T, class F>
void dispatch_vector(int64_t size, F f) {
  if (size % Vector<T>::size == 0) return f(static_cast<Vector<T> *>(nullptr));
  f(static_cast<Vector<T, 1> *>(nullptr));
}

/* Calls f with a null T* of the dtype's C type. */
template <class F>
void dispatch_half(int32_t dtype, F f) {
  switch (dtype) {
    case MSGL_BF16:
      return f(static_cast<bf16 *>(nullptr));
    case MSGL_F16:
      return f(static_cast<f16 *>(nullptr));
    default:
      fail("dtype %d: this device computes in bfloat16 or float16 (float32 models need --device cpu or --dtype)", dtype);
  }
}

}  // namespace minisgl

#endif
