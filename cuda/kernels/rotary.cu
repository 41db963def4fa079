/*
 * rotary.cu: what stands between the QKV product and attention, in one pass over qkv: RMS norm of the query and key
 * heads, rotary embedding (Su et al., 2021; half-split pairs), queries to q, keys and values to their cache rows.
 *
 * A row of qkv:  | query heads | key heads | value heads |, each head of head_dim values, in vectors of 8.
 * Where sizes are multiples of 16, a head is the work of `Lanes` lanes. Lane j holds two vectors, which rotate against each other:
 *
 *   |  0 .. rotary / 2  |  rotary / 2 .. rotary  |     rest     |
 *      j                   j + pairs                pairs of neighbours for the lanes after those, left as they are
 */
#include "chain.h"
#include "vector.cuh"

using namespace minisgl;

namespace {

struct RotaryStore {
  void *q, *k_cache, *v_cache;
  const void *qkv;
  const int32_t *positions, *cache_rows;
  const float *rotary;
  const void *q_norm, *k_norm;
  int64_t items;  // tokens * heads of all three kinds
  int heads, kv_heads, head_dim, rotary_dim;
  float epsilon;
  bool early;  // the chain is settled (chain.h): all but qkv may be read before the wait
};

/* Where a head of a token goes: to q, or to its row of a cache. */
template <class T>
DEVICE T *destination_of(const RotaryStore &a, int64_t token, int head) {
  if (head < a.heads) return static_cast<T *>(a.q) + (token * a.heads + head) * a.head_dim;
  const int kv_head = (head - a.heads) % a.kv_heads;
  T *cache = static_cast<T *>(head < a.heads + a.kv_heads ? a.k_cache : a.v_cache);
  return cache + (static_cast<int64_t>(a.cache_rows[token]) * a.kv_heads + kv_head) * a.head_dim;
}

template <class T, int Lanes>
__global__ void rotary_store_kernel(const RotaryStore a) {
  using V = Vector<T>;
  if (a.early) dependency_trigger();
  else dependency_wait();
  const int64_t item = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / Lanes;
  const int lane = threadIdx.x % Lanes;
  const int row_heads = a.heads + 2 * a.kv_heads;
  const int64_t token = item / row_heads;
  const int head = static_cast<int>(item % row_heads);
  const bool is_query = head < a.heads, is_key = !is_query && head < a.heads + a.kv_heads;
  // All lanes of a warp stay for the reduction; those past the end work on nothing.
  const bool active = item < a.items && lane < a.head_dim / (2 * V::size);
  const int pairs = a.rotary_dim / (2 * V::size);
  const bool rotates = active && lane < pairs && (is_query || is_key);
  const bool normalizes = active && (is_query || is_key) && a.q_norm != nullptr;
  const int first = lane < pairs ? lane : 2 * lane;
  const int second = lane < pairs ? lane + pairs : 2 * lane + 1;

  float cosines[V::size], sines[V::size];
  if (rotates) {
    const float *row = a.rotary + static_cast<int64_t>(a.positions[token]) * a.rotary_dim + lane * V::size;
#pragma unroll
    for (int i = 0; i < V::size; i += 4) {
      *reinterpret_cast<float4 *>(cosines + i) = *reinterpret_cast<const float4 *>(row + i);
      *reinterpret_cast<float4 *>(sines + i) = *reinterpret_cast<const float4 *>(row + a.rotary_dim / 2 + i);
    }
  }
  V norm_first, norm_second;
  if (normalizes) {
    const T *norm = static_cast<const T *>(is_query ? a.q_norm : a.k_norm);
    norm_first = V::load(norm + first * V::size), norm_second = V::load(norm + second * V::size);
  }
  T *destination = active ? destination_of<T>(a, token, head) : nullptr;
  if (a.early) dependency_wait();
  else dependency_trigger();

  float x[V::size] = {}, y[V::size] = {};
  if (active) {
    const T *source = static_cast<const T *>(a.qkv) + (token * row_heads + head) * a.head_dim;
    const V u = V::load(source + first * V::size), v = V::load(source + second * V::size);
#pragma unroll
    for (int i = 0; i < V::size; i++) x[i] = to_float(u.value[i]), y[i] = to_float(v.value[i]);
  }
  if (a.q_norm != nullptr) {
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < V::size; i++) squares += x[i] * x[i] + y[i] * y[i];
#pragma unroll
    for (int offset = Lanes / 2; offset > 0; offset >>= 1) squares += __shfl_xor_sync(~0u, squares, offset);
    if (normalizes) {
      const float scale = rsqrtf(squares / a.head_dim + a.epsilon);
#pragma unroll
      for (int i = 0; i < V::size; i++)
        x[i] *= scale * to_float(norm_first.value[i]), y[i] *= scale * to_float(norm_second.value[i]);
    }
  }
  if (!active) return;
  if (rotates) {
#pragma unroll
    for (int i = 0; i < V::size; i++) {
      const float p = x[i], q = y[i];
      x[i] = p * cosines[i] - q * sines[i];
      y[i] = q * cosines[i] + p * sines[i];
    }
  }
  V u, v;
#pragma unroll
  for (int i = 0; i < V::size; i++) u.value[i] = from_float<T>(x[i]), v.value[i] = from_float<T>(y[i]);
  u.store(destination + first * V::size);
  v.store(destination + second * V::size);
}

/* The same for heads of any size: a warp has a head, a lane every 32nd value of it. */
template <class T>
__global__ void rotary_store_any_kernel(const RotaryStore a) {
  dependency_wait();
  dependency_trigger();
  const int64_t item = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (item >= a.items) return;
  const int lane = threadIdx.x % 32, row_heads = a.heads + 2 * a.kv_heads, half = a.rotary_dim / 2;
  const int64_t token = item / row_heads;
  const int head = static_cast<int>(item % row_heads);
  const bool is_query = head < a.heads, is_value = head >= a.heads + a.kv_heads;
  const T *source = static_cast<const T *>(a.qkv) + item * a.head_dim;
  const T *norm = static_cast<const T *>(is_query ? a.q_norm : a.k_norm);
  const bool normalizes = !is_value && norm != nullptr;
  float squares = 0.f;
  for (int i = lane; i < a.head_dim; i += 32) squares += to_float(source[i]) * to_float(source[i]);
  const float scale = normalizes ? rsqrtf(warp_sum(squares) / a.head_dim + a.epsilon) : 1.f;
  const auto value = [&](int i) { return to_float(source[i]) * scale * (normalizes ? to_float(norm[i]) : 1.f); };
  const float *cosines = a.rotary + static_cast<int64_t>(a.positions[token]) * a.rotary_dim, *sines = cosines + half;
  T *destination = destination_of<T>(a, token, head);
  for (int i = lane; i < a.head_dim; i += 32) {
    float result = value(i);
    if (!is_value && i < half) result = result * cosines[i] - value(i + half) * sines[i];
    else if (!is_value && i < 2 * half) result = result * cosines[i - half] + value(i - half) * sines[i - half];
    destination[i] = from_float<T>(result);
  }
}

template <class T, int Lanes>
void enqueue(msgl_device *device, const RotaryStore &arguments) {
  constexpr int threads = 128;
  prefer_shared_memory(rotary_store_kernel<T, Lanes>);
  launch(device, Follow::dependent, rotary_store_kernel<T, Lanes>,
         static_cast<unsigned>(ceil_div(arguments.items * Lanes, threads)), threads, 0, arguments);
}

}  // namespace

int32_t msgl_rotary_store(msgl_device *device, void *q, void *k_cache, void *v_cache, const void *qkv,
                          const int32_t *positions, const int32_t *cache_rows, const float *rotary, const void *q_norm,
                          const void *k_norm, int32_t tokens, int32_t heads, int32_t kv_heads, int32_t head_dim,
                          int32_t rotary_dim, float epsilon, int32_t dtype, int32_t cache_dtype) {
  return on_device(device, [&] {
    if (dtype != cache_dtype) fail("rotary_store: the cache must have the activations' dtype");
    if (rotary_dim % 2 != 0 || rotary_dim > head_dim)
      fail("rotary_store: rotary_dim %d must be even and at most head_dim %d", rotary_dim, head_dim);
    if ((q_norm == nullptr) != (k_norm == nullptr)) fail("rotary_store: q_norm and k_norm go together");
    const RotaryStore arguments{q,      k_cache, v_cache, qkv, positions, cache_rows, rotary,
                                q_norm, k_norm,  static_cast<int64_t>(tokens) * (heads + 2 * kv_heads),
                                heads,  kv_heads, head_dim, rotary_dim, epsilon, chain_settled(device)};
    dispatch_half(dtype, [&](auto *type) {
      using T = std::remove_pointer_t<decltype(type)>;
      if (head_dim % 16 != 0 || rotary_dim % 16 != 0 || head_dim > 512)
        return launch(device, Follow::dependent, rotary_store_any_kernel<T>,
                      static_cast<unsigned>(ceil_div(arguments.items * 32, 128)), 128, 0, arguments);
      if (head_dim <= 64) return enqueue<T, 4>(device, arguments);
      if (head_dim <= 128) return enqueue<T, 8>(device, arguments);
      if (head_dim <= 256) return enqueue<T, 16>(device, arguments);
      enqueue<T, 32>(device, arguments);
    });
    device->stored_cache = k_cache;
  });
}
