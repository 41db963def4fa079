#include "sampling.h"

#include "../philox.h"
#include "vector.h"

namespace msgl::MSGL_ISA {

static constexpr int kBlock = 64;
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

/// Adds its noise to each of kBlock scores. A plain loop: the compiler makes vectors of it, whole integers included.
static void add_noise(float *scores, const int32_t *ids, const msgl_sampling &how) {
  const uint32_t low = how.seed_low, high = how.seed_high, position = how.position;
  for (int i = 0; i < kBlock; ++i) scores[i] += minisgl::sampling_noise(low, high, ids[i], position);
}

/// A block of at most kBlock scores without their noise, ids ascending or not.
static void draw_block(Best &best, float *scores, int32_t *ids, int32_t count, const msgl_sampling &how) {
  if (largest_of(scores, count) + kMostNoise < best.score) return;
  for (int32_t i = count; i < kBlock; ++i) scores[i] = 0.0f, ids[i] = 0;
  add_noise(scores, ids, how);
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
    best.score = top.score / how.temperature +
                 minisgl::sampling_noise(how.seed_low, how.seed_high, top.id, how.position);
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
  for (int32_t i = 0; i < count; i += kLanes) {
    const int32_t size = count - i < kLanes ? count - i : kLanes;
    store_part(exponentials + i, exponential(load_part(exponentials + i, size)), size);
  }
}

}  // namespace msgl::MSGL_ISA
