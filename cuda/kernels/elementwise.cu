/* elementwise.cu: rows copied by index (embedding, gather) and SiLU(gate) * up; 16 bytes a thread where rows allow it. */
#include "chain.h"
#include "linear.h"
#include "vector.cuh"
#include "weight.h"

using namespace minisgl;

namespace {

/* out[i, :] = source[rows[i], :], zeros where rows[i] lies outside 0 .. limit - 1; a row has `units` of type Unit. */
template <class Unit>
__global__ void gather_kernel(Unit *out, const Unit *source, const int32_t *rows, int units, int64_t limit) {
  dependency_wait();
  dependency_trigger();
  const int64_t row = rows[blockIdx.x];
  const bool inside = row >= 0 && row < limit;
  for (int i = threadIdx.x; i < units; i += blockDim.x)
    out[static_cast<int64_t>(blockIdx.x) * units + i] = inside ? source[row * units + i] : Unit{};
}

void enqueue_gather(msgl_device *device, void *out, const void *source, const int32_t *rows, int count, int64_t size,
                    int32_t dtype, int64_t limit) {
  const int64_t bytes = size * dtype_bytes(dtype);
  const auto run = [&](auto *unit) {
    using Unit = std::remove_pointer_t<decltype(unit)>;
    const int units = static_cast<int>(bytes / sizeof(Unit));
    const int threads = std::min(256, static_cast<int>(ceil_div(units, 32) * 32));
    launch(device, Follow::dependent, gather_kernel<Unit>, count, threads, 0, static_cast<Unit *>(out),
           static_cast<const Unit *>(source), rows, units, limit);
  };
  if (bytes % 16 == 0) return run(static_cast<uint4 *>(nullptr));
  run(static_cast<uint16_t *>(nullptr));
}

/* gate_up [tokens, 2, vectors] -> out [tokens, vectors], a vector a thread. grid (tokens, vectors / threads) */
template <class T, class V>
__global__ void silu_mul_kernel(T *out, const T *gate_up, int vectors) {
  dependency_trigger();  // as in norm.cu: a product follows
  dependency_wait();
  const int column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= vectors) return;
  const int64_t row = blockIdx.x, gate_index = 2 * row * vectors + column;
  const V gate = V::load(gate_up + gate_index * V::size);
  const V up = V::load(gate_up + (gate_index + vectors) * V::size);
  V result;
#pragma unroll
  for (int i = 0; i < V::size; i++) {
    const float g = to_float(gate.value[i]);
    result.value[i] = from_float<T>(g / (1.f + __expf(-g)) * to_float(up.value[i]));
  }
  result.store(out + (row * vectors + column) * V::size);
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

void minisgl::enqueue_silu_mul(msgl_device *device, void *out, const void *gate_up, int tokens, int size,
                               int32_t dtype) {
  dispatch_half(dtype, [&](auto *type) {
    using T = std::remove_pointer_t<decltype(type)>;
    dispatch_vector<T>(size, [&](auto *vector) {
      using V = std::remove_pointer_t<decltype(vector)>;
      const int vectors = size / V::size;
      const int threads = tokens < 1024 ? 128 : 256;
      launch_in_chain(device, silu_mul_kernel<T, V>, dim3(tokens, static_cast<unsigned>(ceil_div(vectors, threads))),
                      threads, 0, static_cast<T *>(out), static_cast<const T *>(gate_up), vectors);
    });
  });
}

int32_t msgl_silu_mul(msgl_device *device, void *out, const void *gate_up, int32_t tokens, int32_t size,
                      int32_t dtype) {
  return on_device(device, [&] { enqueue_silu_mul(device, out, gate_up, tokens, size, dtype); });
}
