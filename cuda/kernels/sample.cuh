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

/* An order-preserving map of floats to integers; NaN is as -infinity, and adding 0 makes -0 as 0. */
DEVICE uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(isnan(value) ? -INFINITY : value + 0.f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* A value and its id, of which the largest is the largest value, the lowest id among equals. */
DEVICE uint64_t candidate(float value, int id) {
  return static_cast<uint64_t>(ordered(value)) << 32 | static_cast<uint32_t>(~id);
}
DEVICE uint64_t candidate(float4 values, int id) {
  return max(max(candidate(values.x, id), candidate(values.y, id + 1)),
             max(candidate(values.z, id + 2), candidate(values.w, id + 3)));
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
 * of Philox.
 */
struct Draw {
  static constexpr float most_noise = 16.7f;  // the largest is 16.64
  float temperature, inverse_temperature, best = -INFINITY;
  float bar = -INFINITY;  // a score that some id of the row reaches: `best`, or better
  int best_id;
  uint32_t position, low[10], high[10];

  /* id: of any candidate, kept if all are minus infinity. */
  DEVICE Draw(const msgl_sampling &row, int id)
      : temperature(row.temperature), inverse_temperature(1.f / row.temperature), best_id(id), position(row.position) {
    constexpr uint32_t step_low = kPhiloxKeys[0], step_high = kPhiloxKeys[1];
#pragma unroll
    for (int i = 0; i < 10; i++) low[i] = row.seed_low + i * step_low, high[i] = row.seed_high + i * step_high;
  }

  /* The words of four ids from 4 * block on: philox of philox.h. */
  DEVICE Philox words(uint32_t block) const {
    constexpr uint32_t factor_a = kPhiloxFactors[0], factor_b = kPhiloxFactors[1];
    uint32_t x = block, y = position, z = 0, w = 0;
#pragma unroll
    for (int i = 0; i < 10; i++) {
      const uint64_t a = uint64_t{factor_a} * x, b = uint64_t{factor_b} * z;
      x = static_cast<uint32_t>(b >> 32) ^ y ^ low[i];
      y = static_cast<uint32_t>(b);
      z = static_cast<uint32_t>(a >> 32) ^ w ^ high[i];
      w = static_cast<uint32_t>(a);
    }
    return {{x, y, z, w}};
  }

  /* Raises the bar to the best that the warps of a block, whose lanes must all be here, have met so far: ordered(bar). */
  DEVICE void meet(uint32_t *warps_bar) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) bar = fmaxf(bar, __shfl_xor_sync(~0u, bar, offset));
    uint32_t reached = ordered(bar);
    if (threadIdx.x % 32 == 0) reached = max(reached, atomicMax(warps_bar, reached));
    reached = __shfl_sync(~0u, reached, 0);
    bar = __uint_as_float(reached & 0x80000000u ? reached ^ 0x80000000u : ~reached);
  }

  /* Raises the bar to what these ids reach at least: the noise is at least log(u / (1 - u)). */
  DEVICE void raise(float4 logits, const Philox &drawn) {
    const auto least = [&](float logit, uint32_t word) {
      return logit * inverse_temperature + __logf(__fdividef(open_uniform(word), open_uniform(~word)));
    };
    bar = fmaxf(bar, fmaxf(fmaxf(least(logits.x, drawn.word[0]), least(logits.y, drawn.word[1])),
                           fmaxf(least(logits.z, drawn.word[2]), least(logits.w, drawn.word[3]))));
  }

  /* How much noise a logit lacks to reach the bar, rounded down to be safe. */
  DEVICE float missing(float logit) const {
    const float scaled = logit * inverse_temperature;
    return bar - scaled - 0.01f - 1e-6f * fabsf(scaled);
  }

  /* Whether no logit that lacks this much reaches the bar with a word up to this one. A word's upper 23 bits, as the
   * fraction of a float of [1, 2), are u + 1 less half a unit. */
  DEVICE static bool too_little(float lacking, uint32_t word) {
    return __uint_as_float(word >> 9 | 0x3f800000u) < 2.f - 0x1p-22f - __expf(-lacking);
  }

  DEVICE void consider(float logit, int id, uint32_t word) {
    if (too_little(missing(logit), word)) return;
    const float score = logit / temperature + gumbel_noise(open_uniform(word));
    if (score > best) best = score, best_id = id, bar = fmaxf(bar, score);
  }

  /* Draws for an id larger than those before. */
  DEVICE void operator()(float logit, int id) {
    if (missing(logit) > most_noise) return;
    const Philox drawn = words(id / 4);
    const uint32_t low = id % 2 ? drawn.word[1] : drawn.word[0], high = id % 2 ? drawn.word[3] : drawn.word[2];
    consider(logit, id, id % 4 < 2 ? low : high);
  }

  /* Whether one of four ids may reach the bar with the largest of their words. */
  DEVICE bool promising(float4 logits, const Philox &drawn) const {
    const float lacking = missing(fmaxf(fmaxf(logits.x, logits.y), fmaxf(logits.z, logits.w)));
    return !too_little(lacking, max(max(drawn.word[0], drawn.word[1]), max(drawn.word[2], drawn.word[3])));
  }

  /* Draws for four ids larger than those before, the first a multiple of 4: they share their words. */
  DEVICE void consider(float4 logits, int id, const Philox &drawn) {
    consider(logits.x, id, drawn.word[0]);
    consider(logits.y, id + 1, drawn.word[1]);
    consider(logits.z, id + 2, drawn.word[2]);
    consider(logits.w, id + 3, drawn.word[3]);
  }
};

DEVICE bool in_fours(const float *logits, int begin, int end) {
  return reinterpret_cast<uintptr_t>(logits + begin) % 16 == 0 && (end - begin) % 4 == 0;
}

/*
 * Calls f(id, four logits), or f(id, logit) where a row is not aligned, for one thread's share of begin .. end - 1, by
 * default the calling one's of its block's threads.
 */
template <class F>
DEVICE void for_each_four(const float *logits, int begin, int end, F f, int thread = threadIdx.x,
                          int threads = blockDim.x) {
  if (in_fours(logits, begin, end)) {
    for (int i = begin + 4 * thread; i < end; i += 4 * threads) f(i, *reinterpret_cast<const float4 *>(logits + i));
  } else {
    for (int i = begin + thread; i < end; i += threads) f(i, logits[i]);
  }
}

/* Calls f(id, logit) for the same share, in rising order. */
template <class F>
DEVICE void for_each_logit(const float *logits, int begin, int end, F f, int thread = threadIdx.x,
                           int threads = blockDim.x) {
  struct Each {
    F &f;
    DEVICE void operator()(int id, float logit) { f(id, logit); }
    DEVICE void operator()(int id, float4 four) { f(id, four.x), f(id + 1, four.y), f(id + 2, four.z), f(id + 3, four.w); }
  };
  for_each_four(logits, begin, end, Each{f}, thread, threads);
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

/* logits.cu: bytes of device->sampling_scratch, behind those of msgl_sample, that msgl_logprobs works in. */
size_t logprobs_scratch_bytes();

}  // namespace minisgl

#endif
