/*
 * philox.h: Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
 * (2011), and what both libraries make of its words. Integers, or floats rounded at each step: CPU and GPU agree bit for
 * bit.
 */
#ifndef MINISGL_PHILOX_H
#define MINISGL_PHILOX_H

#include <cstdint>

#ifdef __CUDACC__
#define MSGL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MSGL_HOST_DEVICE inline __attribute__((always_inline))  // no copy of it may be shared by instruction sets
#endif

namespace minisgl {

constexpr uint32_t kPhiloxFactors[2] = {0xD2511F53u, 0xCD9E8D57u};
constexpr uint32_t kPhiloxKeys[2] = {0x9E3779B9u, 0xBB67AE85u};

struct Philox {
  uint32_t word[4];
};

/* The four words at `counter` under the 64-bit key (key_low, key_high). */
MSGL_HOST_DEVICE Philox philox(Philox counter, uint32_t key_low, uint32_t key_high) {
  constexpr uint32_t factors[2] = {kPhiloxFactors[0], kPhiloxFactors[1]}; /* device code knows no global arrays */
  constexpr uint32_t keys[2] = {kPhiloxKeys[0], kPhiloxKeys[1]};
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t{factors[0]} * counter.word[0];
    const uint64_t b = uint64_t{factors[1]} * counter.word[2];
    counter = {{static_cast<uint32_t>(b >> 32) ^ counter.word[1] ^ key_low, static_cast<uint32_t>(b),
                static_cast<uint32_t>(a >> 32) ^ counter.word[3] ^ key_high, static_cast<uint32_t>(a)}};
    key_low += keys[0];
    key_high += keys[1];
  }
  return counter;
}

/* A word as a uniform number in (0, 1); never 0 or 1. */
MSGL_HOST_DEVICE float open_uniform(uint32_t word) {
  return (static_cast<float>(word >> 9) + 0.5f) * (1.0f / 8388608.0f);
}

/* The uniform number that msgl_sample draws for a token id at a position of its sequence. Four ids share a counter. */
MSGL_HOST_DEVICE float sampling_uniform(uint32_t seed_low, uint32_t seed_high, uint32_t id, uint32_t position) {
  return open_uniform(philox({{id / 4, position, 0, 0}}, seed_low, seed_high).word[id % 4]);
}

#ifdef __CUDA_ARCH__
#define MSGL_MULTIPLY __fmul_rn
#define MSGL_ADD __fadd_rn
#else
#define MSGL_MULTIPLY(a, b) ((a) * (b)) /* compiled with -ffp-contract=off */
#define MSGL_ADD(a, b) ((a) + (b))
#endif
#define MSGL_BITS(type, value) __builtin_bit_cast(type, value)

/* The natural logarithm of a normal positive number (Cephes, logf), each step rounded so that CPU and GPU agree. */
MSGL_HOST_DEVICE float sampling_log(float x) {
  const int32_t shifted = MSGL_BITS(int32_t, x) - 0x3f3504f3; /* of sqrt(1/2): the mantissa lies around 1 */
  const float e = static_cast<float>(shifted >> 23);
  const float f = MSGL_BITS(float, (shifted & 0x7fffff) + 0x3f3504f3) - 1.0f;
  const float z = MSGL_MULTIPLY(f, f);
  float y = MSGL_ADD(MSGL_MULTIPLY(7.0376836292e-2f, f), -1.1514610310e-1f);
  y = MSGL_ADD(MSGL_MULTIPLY(y, f), 1.1676998740e-1f);
  y = MSGL_ADD(MSGL_MULTIPLY(y, f), -1.2420140846e-1f);
  y = MSGL_ADD(MSGL_MULTIPLY(y, f), 1.4249322787e-1f);
  y = MSGL_ADD(MSGL_MULTIPLY(y, f), -1.6668057665e-1f);
  y = MSGL_ADD(MSGL_MULTIPLY(y, f), 2.0000714765e-1f);
  y = MSGL_ADD(MSGL_MULTIPLY(y, f), -2.4999993993e-1f);
  y = MSGL_ADD(MSGL_MULTIPLY(y, f), 3.3333331174e-1f);
  y = MSGL_MULTIPLY(MSGL_MULTIPLY(y, f), z);
  y = MSGL_ADD(y, MSGL_MULTIPLY(e, -2.12194440e-4f));
  y = MSGL_ADD(y, MSGL_MULTIPLY(-0.5f, z));
  return MSGL_ADD(MSGL_ADD(f, y), MSGL_MULTIPLY(e, 0.693359375f));
}

/* The Gumbel noise of a uniform number from open_uniform: between -2.9 and 16.7. */
MSGL_HOST_DEVICE float gumbel_noise(float u) { return -sampling_log(-sampling_log(u)); }

/* The noise that msgl_sample adds to logit / temperature of a token id at a position of its sequence. */
MSGL_HOST_DEVICE float sampling_noise(uint32_t seed_low, uint32_t seed_high, uint32_t id, uint32_t position) {
  return gumbel_noise(sampling_uniform(seed_low, seed_high, id, position));
}

/* Value `index` of msgl_random and msgl_weight_random: uniform in [-1, 1) on a grid of 2^-23. */
MSGL_HOST_DEVICE float random_value(uint64_t seed, uint64_t index) {
  const uint64_t block = index >> 2;
  const Philox words = philox({{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), 0, 1}},
                              static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return static_cast<float>(words.word[index & 3] >> 8) * (1.0f / 8388608.0f) - 1.0f;
}

}  // namespace minisgl

#endif
