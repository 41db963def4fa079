/* elementwise.cu: rows copied by index (embedding, gather) and SiLU(gate) * up. 16 bytes a thread and turn. */
#include "vector.cuh"
#include "weight.h"

using namespace minisgl;

namespace {

/* out[i, :] = source[rows[i], :], zeros where rows[i] lies outside 0 .. limit - 1; a row has `vectors` 16-byte units. */
__global__ void gather_kernel(uint4 *out, const uint4 *source, const int32_t *rows, int vectors, int64_t limit) {
  dependency_wait();
  dependency_trigger();
  const int64_t row = rows[blockIdx.x];
  const bool inside = row >= 0 && row < limit;
  for (int i = threadIdx.x; i < vectors; i += blockDim.x)
    out[static_cast<int64_t>(blockIdx.x) * vectors + i] = inside ? source[row * vectors + i] : make_uint4(0, 0, 0, 0);
}

void enqueue_gather(msgl_device *device, void *out, const void *source, const int32_t *rows, int count, int64_t size,
                    int32_t dtype, int64_t limit) {
  const int64_t bytes = size * dtype_bytes(dtype);
  if (bytes % 16 != 0) fail("rows of %lld values: a row must be a multiple of 16 bytes", static_cast<long long>(size));
  const int vectors = static_cast<int>(bytes / 16);
  const int threads = std::min(256, static_cast<int>(ceil_div(vectors, 32) * 32));
  launch(device, Follow::dependent, gather_kernel, count, threads, 0, static_cast<uint4 *>(out),
         static_cast<const uint4 *>(source), rows, vectors, limit);
}

/* gate_up [tokens, 2, vectors] -> out [tokens, vectors], a vector a thread. */
template <class T>
__global__ void silu_mul_kernel(T *out, const T *gate_up, int64_t total, int vectors) {
  using V = Vector<T>;
  dependency_trigger();  // as in norm.cu: a product follows
  dependency_wait();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= total) return;
  const int64_t row = index / vectors;
  const int64_t gate_index = index + row * vectors;
  const V gate = V::load(gate_up + gate_index * V::size);
  const V up = V::load(gate_up + (gate_index + vectors) * V::size);
  V result;
#pragma unroll
  for (int i = 0; i < V::size; i++) {
    const float g = to_float(gate.value[i]);
    result.value[i] = from_float<T>(g / (1.f + __expf(-g)) * to_float(up.value[i]));
  }
  result.store(out + index * V::size);
}

}  // namespace

int32_t msgl_embedding(msgl_device *device, void *out, const int32_t *ids, const msgl_weight *weight, int32_t tokens,
                       int32_t dtype) {
  return on_device(device, [&] {
    if (dtype != weight->dtype) fail("embedding: activations of dtype %d, weight of dtype %d", dtype, weight->dtype);
    enqueue_gather(device, out, weight->memory.get(), ids, tokens, weight->k, dtype, weight->n);
  });
}

int32_t msgl_gather(msgl_device *device, void *out, const void *x, const int32_t *rows, int32_t count, int32_t size,
                    int32_t dtype) {
  return on_device(device, [&] { enqueue_gather(device, out, x, rows, count, size, dtype, INT64_MAX); });
}

int32_t msgl_silu_mul(msgl_device *device, void *out, const void *gate_up, int32_t tokens, int32_t size,
                      int32_t dtype) {
  return on_device(device, [&] {
    dispatch_half(dtype, [&](auto *type) {
      using T = std::remove_pointer_t<decltype(type)>;
      if (size % Vector<T>::size != 0) fail("silu_mul: size %d is not a multiple of %d", size, Vector<T>::size);
      const int vectors = size / Vector<T>::size;
      const int64_t total = static_cast<int64_t>(tokens) * vectors;
      launch(device, Follow::dependent, silu_mul_kernel<T>, static_cast<unsigned>(ceil_div(total, 128)), 128, 0,
             static_cast<T *>(out), static_cast<const T *>(gate_up), total, vectors);
    });
  });
}
