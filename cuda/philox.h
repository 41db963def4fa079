/*
 * philox.h: Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
 * (2011), and the two ways in which both libraries draw from it. Integer arithmetic only, so CPU and GPU agree bit for bit.
 */
#ifndef MINISGL_PHILOX_H
#define MINISGL_PHILOX_H

#include <cstdint>

#ifdef __CUDACC__
#define MSGL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MSGL_HOST_DEVICE inline __attribute__((always_inline)) // no copy of it may be shared by instruction sets
#endif

namespace minisgl {

struct Philox {
  uint32_t word[4];
};

/* The four words at `counter` under the 64-bit key (key_low, key_high). */
MSGL_HOST_DEVICE Philox philox(Philox counter, uint32_t key_low, uint32_t key_high) {
  for (int round = 0; round < 10; round++) {
    const uint64_t a = 0xD2511F53ull * counter.word[0];
    const uint64_t b = 0xCD9E8D57ull * counter.word[2];
    counter = {{static_cast<uint32_t>(b >> 32) ^ counter.word[1] ^ key_low, static_cast<uint32_t>(b),
                static_cast<uint32_t>(a >> 32) ^ counter.word[3] ^ key_high, static_cast<uint32_t>(a)}};
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return counter;
}

/* The uniform number in (0, 1) that msgl_sample draws for a token id at a position of its sequence; never 0 or 1. */
MSGL_HOST_DEVICE float sampling_uniform(uint32_t seed_low, uint32_t seed_high, uint32_t id, uint32_t position) {
  const uint32_t w = philox({{id, position, 0, 0}}, seed_low, seed_high).word[0];
  return (static_cast<float>(w >> 9) + 0.5f) * (1.0f / 8388608.0f);
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
