// The kernels of sampling: sampling.simd.cpp.
#pragma once

#include <cstdint>

#include "isa.h"
#include "minisgl.h"

namespace msgl {

/// The best id so far: of the largest score, the lowest among equals.
struct Best {
  float score;
  int32_t id;
};

/// Bins of filter_bins: 128 a unit of logit / temperature.
constexpr int32_t kBins = 4096;

// clang-format off
MSGL_EVERY_ISA(
/// The largest of logits[count], whose ids start at `id`; (-inf, id) where none is above -inf.
Best largest_logit(const float *logits, int32_t count, int32_t id);
/// The id with the largest logits / temperature + noise among ids id .. id + count - 1.
Best draw(const float *logits, int32_t count, int32_t id, const msgl_sampling &how);
/// The same among listed ids; scaled: logits / temperature of all ids.
Best draw_listed(const float *scaled, const int32_t *ids, int32_t count, const msgl_sampling &how);
/// logits / temperature, NaN as -inf; returns the largest.
float scale_logits(float *scaled, const float *logits, int32_t count, float temperature);
/// exp(scaled - largest), and the bin of each: 0 for the largest, more the smaller.
void filter_bins(float *exponentials, int32_t *bins, const float *scaled, int32_t count, float largest);
/// log(sum(exp(logits))), always summed in the same order.
double log_sum_exp(const float *logits, int32_t count);
/// The first index from `begin` on with logits[index] > bound; `count` if there is none.
int32_t first_above(const float *logits, int32_t begin, int32_t count, float bound);
)
// clang-format on

}  // namespace msgl
