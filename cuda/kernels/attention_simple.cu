/*
 * attention_simple.cu: attention of any head_dim up to 512, written to be read. A block has one query row and head; its
 * warps take every fourth token, and lanes have dimensions lane, lane + 32, ... An online softmax (Milakov and
 * Gimelshein, 2018) runs in each warp, and the warps are merged at the end.
 */
#include <cmath>

#include "attention.h"
#include "vector.cuh"

namespace minisgl {
namespace {

constexpr int warps = 4, max_head_dim = 512, max_values = max_head_dim / 32;

template <class T>
__global__ void simple_attention_kernel(const AttentionArguments a) {
  __shared__ float outs[warps][max_head_dim], maxima[warps], sums[warps];
  dependency_wait();
  dependency_trigger();
  const int row = blockIdx.x, head = blockIdx.y, kv_head = head / (a.heads / a.kv_heads);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  // The sequence of this row: the last one that begins at or before it. query_begin need not begin at 0.
  const int absolute = a.query_begin[0] + row;
  int sequence = 0, past = a.sequences;
  while (past - sequence > 1) {
    const int middle = (sequence + past) / 2;
    (a.query_begin[middle] <= absolute ? sequence : past) = middle;
  }
  const int pages_begin = a.page_begin[sequence];
  const int context = (a.page_begin[sequence + 1] - pages_begin - 1) * a.page_size + a.last_page_length[sequence];
  const int visible = context - (a.query_begin[sequence + 1] - 1 - absolute);  // the causal mask: tokens 0 .. visible - 1

  float q[max_values], out[max_values] = {}, maximum = -INFINITY, sum = 0.f;
  const T *query = static_cast<const T *>(a.q) + (static_cast<int64_t>(row) * a.heads + head) * a.head_dim;
#pragma unroll
  for (int i = 0; i < max_values; i++) {
    const int dimension = i * 32 + lane;
    q[i] = dimension < a.head_dim ? to_float(query[dimension]) * a.scale : 0.f;
  }
  for (int token = warp; token < visible; token += warps) {
    const int64_t cache_row =
        static_cast<int64_t>(a.pages[pages_begin + token / a.page_size]) * a.page_size + token % a.page_size;
    const int64_t offset = (cache_row * a.kv_heads + kv_head) * a.head_dim;
    const T *k = static_cast<const T *>(a.k_cache) + offset, *v = static_cast<const T *>(a.v_cache) + offset;
    float score = 0.f;
#pragma unroll
    for (int i = 0; i < max_values; i++)
      if (i * 32 + lane < a.head_dim) score += q[i] * to_float(k[i * 32 + lane]);
    score = warp_sum(score);
    const float next = fmaxf(maximum, score), rescale = __expf(maximum - next), weight = __expf(score - next);
    maximum = next;
    sum = sum * rescale + weight;
#pragma unroll
    for (int i = 0; i < max_values; i++)
      if (i * 32 + lane < a.head_dim) out[i] = out[i] * rescale + weight * to_float(v[i * 32 + lane]);
  }
#pragma unroll
  for (int i = 0; i < max_values; i++) outs[warp][i * 32 + lane] = out[i];
  if (lane == 0) maxima[warp] = maximum, sums[warp] = sum;
  __syncthreads();

  for (int i = 1; i < warps; i++) maximum = fmaxf(i == 1 ? maxima[0] : maximum, maxima[i]);
  T *destination = static_cast<T *>(a.out) + (static_cast<int64_t>(row) * a.heads + head) * a.head_dim;
  for (int dimension = threadIdx.x; dimension < a.head_dim; dimension += blockDim.x) {
    float value = 0.f, total = 0.f;
    for (int i = 0; i < warps; i++) {
      const float weight = __expf(maxima[i] - maximum);
      value += weight * outs[i][dimension];
      total += weight * sums[i];
    }
    destination[dimension] = from_float<T>(value / total);
  }
}

}  // namespace

void enqueue_simple_attention(msgl_device *device, const AttentionArguments &arguments, int32_t dtype) {
  if (arguments.head_dim > max_head_dim) fail("attention has no kernel for head_dim %d", arguments.head_dim);
  dispatch_half(dtype, [&](auto *type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(device, Follow::dependent, simple_attention_kernel<T>, dim3(arguments.tokens, arguments.heads), warps * 32,
           0, arguments);
  });
}

}  // namespace minisgl
