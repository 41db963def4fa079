/*
 * norm.cu: root mean square normalisation (Zhang and Sennrich, 2019), alone or after adding to the residual.
 *
 * One block a row; thread t keeps vectors t, t + threads, ... of the row in registers between the two passes:
 *
 *   row:   | v0 v1 v2 ... |   sum of squares over the block   | v0 * r * w0, v1 * r * w1, ... |
 */
#include "chain.h"
#include "linear.h"
#include "vector.cuh"

using namespace minisgl;

namespace {

constexpr int max_vectors = 4;  // a thread: rows of up to 4 * 1024 threads * 8 values, or 4096 odd ones

template <class T, class V, bool Add>
__global__ void __launch_bounds__(1024) rms_norm_kernel(T *out, T *residual, const T *x, const T *weight, int size, float epsilon) {
  __shared__ float scratch[32];
  dependency_trigger();  // at once, since what follows a norm is a product that fetches weights while it waits
  const int vectors = size / V::size;
  const int64_t base = static_cast<int64_t>(blockIdx.x) * size;
  V values[max_vectors], weights[max_vectors];
#pragma unroll
  for (int j = 0; j < max_vectors; j++) {
    const int i = j * blockDim.x + threadIdx.x;
    if (i < vectors) weights[j] = V::load(weight + i * V::size);
  }
  dependency_wait();

  float squares = 0.f;
#pragma unroll
  for (int j = 0; j < max_vectors; j++) {
    const int i = j * blockDim.x + threadIdx.x;
    if (i >= vectors) break;
    values[j] = V::load(x + base + i * V::size);
    if (Add) {
      const V before = V::load(residual + base + i * V::size);
#pragma unroll
      for (int l = 0; l < V::size; l++)
        values[j].value[l] = from_float<T>(to_float(values[j].value[l]) + to_float(before.value[l]));
      values[j].store(residual + base + i * V::size);
    }
#pragma unroll
    for (int l = 0; l < V::size; l++) squares += to_float(values[j].value[l]) * to_float(values[j].value[l]);
  }
  const float scale = rsqrtf(block_sum(squares, scratch) / size + epsilon);
#pragma unroll
  for (int j = 0; j < max_vectors; j++) {
    const int i = j * blockDim.x + threadIdx.x;
    if (i >= vectors) break;
#pragma unroll
    for (int l = 0; l < V::size; l++)
      values[j].value[l] = from_float<T>(to_float(values[j].value[l]) * scale * to_float(weights[j].value[l]));
    values[j].store(out + base + i * V::size);
  }
}

template <bool Add>
void enqueue(msgl_device *device, void *out, void *residual, const void *x, const void *weight, int tokens,
                      int size, float epsilon, int32_t dtype) {
  dispatch_half(dtype, [&](auto *type) {
    using T = std::remove_pointer_t<decltype(type)>;
    dispatch_vector<T>(size, [&](auto *vector) {
      using V = std::remove_pointer_t<decltype(vector)>;
      if (size > max_vectors * 1024 * V::size) fail("rms_norm: rows of %d values are too long", size);
      // Where there are rows enough to fill the device, few threads a row: a block waits for its slowest.
      const int a_thread = tokens >= 8 * device->multiprocessors ? max_vectors : 1;
      const int threads = std::min(1024, static_cast<int>(ceil_div(size / V::size, 32 * a_thread) * 32));
      launch_in_chain(device, rms_norm_kernel<T, V, Add>, tokens, threads, 0, static_cast<T *>(out),
                      static_cast<T *>(residual), static_cast<const T *>(x), static_cast<const T *>(weight), size,
                      epsilon);
    });
  });
}

}  // namespace

void minisgl::enqueue_rms_norm(msgl_device *device, void *out, const void *x, const void *weight, int tokens, int size,
                               float epsilon, int32_t dtype) {
  enqueue<false>(device, out, nullptr, x, weight, tokens, size, epsilon, dtype);
}

int32_t msgl_rms_norm(msgl_device *device, void *out, const void *x, const void *weight, int32_t tokens, int32_t size,
                      float epsilon, int32_t dtype) {
  return on_device(device, [&] { enqueue_rms_norm(device, out, x, weight, tokens, size, epsilon, dtype); });
}

int32_t msgl_add_rms_norm(msgl_device *device, void *out, void *residual, const void *x, const void *weight,
                          int32_t tokens, int32_t size, float epsilon, int32_t dtype) {
  return on_device(device, [&] { enqueue<true>(device, out, residual, x, weight, tokens, size, epsilon, dtype); });
}
