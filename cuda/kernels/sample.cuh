/* sample.cuh: what the two sampling kernels share: the order of candidates, the draw, and where a token is written. */
#ifndef MINISGL_SAMPLE_CUH
#define MINISGL_SAMPLE_CUH

#include <cmath>

#include "../philox.h"
#include "vector.cuh"

namespace minisgl {

constexpr int max_sampling_rows = 1 << 16;

struct Sampling {
  int32_t *tokens, *token_table;
  const float *logits;
  const msgl_sampling *rows;
  int vocabulary;
  int64_t token_stride;
};

/* An order-preserving map of floats to integers; NaN comes first. */
DEVICE uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(isnan(value) ? -INFINITY : value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* A value and its id, of which the largest is the largest value, the lowest id among equals. */
DEVICE uint64_t candidate(float value, int id) {
  return static_cast<uint64_t>(ordered(value)) << 32 | static_cast<uint32_t>(~id);
}
DEVICE int candidate_id(uint64_t candidate) { return static_cast<int>(~static_cast<uint32_t>(candidate)); }

/* The largest candidate of a block, in thread 0. scratch: 32 words of shared memory, of one use only. */
DEVICE uint64_t block_best(uint64_t best, uint64_t *scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) best = max(best, __shfl_xor_sync(~0u, best, offset));
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x == 0)
    for (unsigned i = 1; i < blockDim.x / 32; i++) best = max(best, scratch[i]);
  return best;
}

/*
 * The Gumbel-max draws of one row, of which the best is kept. The noise -log(-log(u)) exceeds d only if
 * u > exp(-exp(-d)) >= 1 - exp(-d), which spares most ids the logarithms; what is left is bound by the integer arithmetic
 * of Philox, so its rounds' keys, the same for every id, are kept in registers.
 */
struct Draw {
  float temperature, inverse_temperature, best = -INFINITY;
  int best_id;
  uint32_t position, low[10], high[10];

  /* id: of any candidate, kept if all are minus infinity. */
  DEVICE Draw(const msgl_sampling &row, int id)
      : temperature(row.temperature), inverse_temperature(1.f / row.temperature), best_id(id), position(row.position) {
    constexpr uint32_t step_low = kPhiloxKeys[0], step_high = kPhiloxKeys[1];
#pragma unroll
    for (int i = 0; i < 10; i++) low[i] = row.seed_low + i * step_low, high[i] = row.seed_high + i * step_high;
  }

  /* sampling_uniform of philox.h. */
  DEVICE float uniform(uint32_t id) const {
    constexpr uint32_t factor_a = kPhiloxFactors[0], factor_b = kPhiloxFactors[1];
    uint32_t x = id, y = position, z = 0, w = 0;
#pragma unroll
    for (int i = 0; i < 10; i++) {
      const uint64_t a = uint64_t{factor_a} * x, b = uint64_t{factor_b} * z;
      x = static_cast<uint32_t>(b >> 32) ^ y ^ low[i];
      y = static_cast<uint32_t>(b);
      z = static_cast<uint32_t>(a >> 32) ^ w ^ high[i];
      w = static_cast<uint32_t>(a);
    }
    return open_uniform(x);
  }

  /* Draws for an id larger than those before. */
  DEVICE void operator()(float logit, int id) {
    const float scaled = logit * inverse_temperature;
    const float missing = best - scaled - 0.01f - 1e-6f * fabsf(scaled);  // rounded down to be safe
    if (missing > 16.7f) return;  // the largest noise is 16.64
    const float u = uniform(id);
    if (1.f - u > __expf(-missing)) return;
    const float score = logit / temperature + gumbel_noise(u);
    if (score > best) best = score, best_id = id;
  }
};

/* Calls f(id, logit) for this thread's share of ids begin .. end - 1, in rising order. */
template <class F>
DEVICE void for_each_logit(const float *logits, int begin, int end, F f) {
  if (reinterpret_cast<uintptr_t>(logits + begin) % 16 == 0 && (end - begin) % 4 == 0) {
    for (int i = begin + 4 * threadIdx.x; i < end; i += 4 * blockDim.x) {
      const float4 v = *reinterpret_cast<const float4 *>(logits + i);
      f(i, v.x);
      f(i + 1, v.y);
      f(i + 2, v.z);
      f(i + 3, v.w);
    }
  } else {
    for (int i = begin + threadIdx.x; i < end; i += blockDim.x) f(i, logits[i]);
  }
}

DEVICE bool filters(const msgl_sampling &row, int vocabulary) {
  return row.temperature > 0.f &&
         ((row.top_k > 0 && row.top_k < vocabulary) || row.top_p < 1.f || row.min_p > 0.f);
}

DEVICE void write_token(const Sampling &s, int index, const msgl_sampling &row, int id) {
  s.tokens[index] = id;
  if (row.slot >= 0) s.token_table[row.slot * s.token_stride + row.position] = id;
}

/* sample_filter.cu: the rows for which filters() is true. */
void enqueue_filtered_sampling(msgl_device *device, const Sampling &sampling, int count);

}  // namespace minisgl

#endif
