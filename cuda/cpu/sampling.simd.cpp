#include "sampling.h"

#include "../philox.h"
#include "vector.h"

namespace msgl::MSGL_ISA {

static constexpr int kBlock = 16;
static constexpr float kMostNoise = 16.7f;

static float largest_of(const float *x, int32_t count) {
  Floats top = broadcast(-__builtin_inff());
  int32_t i = 0;
  for (; i + kLanes <= count; i += kLanes) top = larger(load(x + i), top);
  float result = largest(top);
  for (; i < count; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

Best largest_logit(const float *logits, int32_t count, int32_t id) {
  const float top = largest_of(logits, count);
  for (int32_t i = 0; i < count && top > -__builtin_inff(); ++i) {
    if (logits[i] == top) return {top, id + i};
  }
  return {-__builtin_inff(), id};
}

#if defined(MSGL_ISA_avx2) || defined(MSGL_ISA_avx512)
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));

/// The high and low words of the 64-bit products of each lane and a factor.
static inline void multiply_wide(Words &high, Words &low, Words x, uint32_t factor) {
#if defined(MSGL_ISA_avx512)
  const __m512i f = _mm512_set1_epi32(factor), even = _mm512_mul_epu32((__m512i)x, f);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)x, 32), f);
  high = (Words)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
  low = (Words)_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
#else
  const __m256i f = _mm256_set1_epi32(factor), even = _mm256_mul_epu32((__m256i)x, f);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)x, 32), f);
  high = (Words)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  low = (Words)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
#endif
}

/// The word that minisgl::philox draws for each of kBlock ids: the same rounds, of many counters at once, for which
/// compilers do not find the instructions.
static void draw_words(uint32_t *words, const int32_t *ids, const msgl_sampling &how) {
  for (int i = 0; i < kBlock; i += kLanes) {
    Words id, b = Words{} + static_cast<uint32_t>(how.position), c = {}, d = {};
    std::memcpy(&id, ids + i, sizeof id);
    Words a = id / 4;
    uint32_t low = how.seed_low, high = how.seed_high;
    for (int round = 0; round < 10; ++round) {
      Words x_high, x_low, y_high, y_low;
      multiply_wide(x_high, x_low, a, minisgl::kPhiloxFactors[0]);
      multiply_wide(y_high, y_low, c, minisgl::kPhiloxFactors[1]);
      a = y_high ^ b ^ low;
      b = y_low;
      c = x_high ^ d ^ high;
      d = x_low;
      low += minisgl::kPhiloxKeys[0];
      high += minisgl::kPhiloxKeys[1];
    }
    const Words which = id % 4, result = which < 2 ? (which == 0 ? a : b) : (which == 2 ? c : d);
    std::memcpy(words + i, &result, sizeof result);
  }
}
#else
static void draw_words(uint32_t *words, const int32_t *ids, const msgl_sampling &how) {
  const uint32_t low = how.seed_low, high = how.seed_high, position = how.position;
  for (int i = 0; i < kBlock; ++i) {
    const uint32_t id = ids[i];
    words[i] = minisgl::philox({{id / 4, position, 0, 0}}, low, high).word[id % 4];
  }
}
#endif

/// Adds its noise to each of kBlock scores.
static void add_noise(float *scores, const int32_t *ids, const msgl_sampling &how) {
  uint32_t words[kBlock];
  draw_words(words, ids, how);
  for (int i = 0; i < kBlock; ++i) scores[i] += minisgl::gumbel_noise(minisgl::open_uniform(words[i]));
}

/// A block of at most kBlock scores without their noise, ids ascending or not.
static void draw_block(Best &best, float *scores, int32_t *ids, int32_t count, const msgl_sampling &how) {
  if (largest_of(scores, count) + kMostNoise < best.score) return;
  for (int32_t i = count; i < kBlock; ++i) scores[i] = 0.0f, ids[i] = 0;
  add_noise(scores, ids, how);
  if (largest_of(scores, count) < best.score) return;
  for (int32_t i = 0; i < count; ++i) {
    const bool better = scores[i] > best.score || (scores[i] == best.score && ids[i] < best.id);
    if (better) best = {scores[i], ids[i]};
  }
}

static Best nothing(int32_t id) { return {-__builtin_inff(), id}; }

Best draw(const float *logits, int32_t count, int32_t id, const msgl_sampling &how) {
  // The largest logit is drawn first: most of the others cannot reach its score and need no noise.
  const Best top = largest_logit(logits, count, id);
  Best best = nothing(top.id);
  if (top.score > -__builtin_inff()) {
    best.score =
        top.score / how.temperature + minisgl::sampling_noise(how.seed_low, how.seed_high, top.id, how.position);
  }
  float scores[kBlock];
  int32_t ids[kBlock];
  for (int32_t begin = 0; begin < count; begin += kBlock) {
    const int32_t size = count - begin < kBlock ? count - begin : kBlock;
    for (int32_t i = 0; i < size; ++i) {
      scores[i] = logits[begin + i] / how.temperature;
      ids[i] = id + begin + i;
    }
    draw_block(best, scores, ids, size, how);
  }
  return best;
}

Best draw_listed(const float *scaled, const int32_t *listed, int32_t count, const msgl_sampling &how) {
  Best best = nothing(listed[0]);
  float scores[kBlock];
  int32_t ids[kBlock];
  for (int32_t begin = 0; begin < count; begin += kBlock) {
    const int32_t size = count - begin < kBlock ? count - begin : kBlock;
    for (int32_t i = 0; i < size; ++i) {
      ids[i] = listed[begin + i];
      scores[i] = scaled[ids[i]];
    }
    draw_block(best, scores, ids, size, how);
  }
  return best;
}

float scale_logits(float *scaled, const float *logits, int32_t count, float temperature) {
  for (int32_t i = 0; i < count; ++i) {
    const float x = logits[i] / temperature;
    scaled[i] = x == x ? x : -__builtin_inff();
  }
  return largest_of(scaled, count);
}

void filter_bins(float *exponentials, int32_t *bins, const float *scaled, int32_t count, float largest) {
  for (int32_t i = 0; i < count; ++i) {
    // Where the largest is infinite, the difference of two such would be none.
    const float distance = scaled[i] < largest ? largest - scaled[i] : 0.0f;
    const float bin = distance * 128.0f;
    bins[i] = static_cast<int32_t>(bin < kBins - 1 ? bin : kBins - 1.0f);
    exponentials[i] = -distance;
  }
  int32_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(exponentials + i, exponential(load(exponentials + i)));
  store_part(exponentials + i, exponential(load_part(exponentials + i, count - i)), count - i);
}

double log_sum_exp(const float *logits, int32_t count) {
  constexpr int32_t kRun = 32 * kLanes;  // so many are added as floats
  const float largest = largest_of(logits, count);
  double total = 0;
  int32_t i = 0;
  for (; i + kRun <= count; i += kRun) {
    Floats sums = {};
    for (int32_t j = i; j < i + kRun; j += kLanes) sums += exponential(load(logits + j) - largest);
    total += sum(sums);
  }
  for (; i < count; i += kLanes) {
    const int32_t left = count - i < kLanes ? count - i : kLanes;
    Floats lanes = exponential(load_part(logits + i, left) - largest);
    for (int32_t lane = 0; lane < left; ++lane) total += lanes[lane];
  }
  return largest + __builtin_log(total);
}

int32_t first_above(const float *logits, int32_t begin, int32_t count, float bound) {
  int32_t i = begin;
  for (; i + kBlock <= count; i += kBlock) {
    if (largest_of(logits + i, kBlock) > bound) break;
  }
  while (i < count && !(logits[i] > bound)) ++i;
  return i;
}

}  // namespace msgl::MSGL_ISA
