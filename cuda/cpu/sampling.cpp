// From logits to tokens. Chunks of a row are searched in parallel; a row with filters is one task.
#include "sampling.h"

#include <algorithm>
#include <numeric>

#include "device.h"

namespace msgl {
namespace {

constexpr int32_t kChunk = 16384;

/// A row's ids that pass its filters, and what finding them takes.
class Filter {
 public:
  Best draw(const float *logits, int32_t vocabulary, const msgl_sampling &how);

 private:
  void collect(const msgl_sampling &how, int32_t vocabulary);
  void cut(const msgl_sampling &how, int32_t vocabulary);

  double total_ = 0;  // of the exponentials of all ids
  std::vector<float> scaled_, exponentials_;
  std::vector<int32_t> bins_, ids_;
};

bool keeps_all(int32_t top_k, int32_t vocabulary) { return top_k <= 0 || top_k >= vocabulary; }

/// Gathers the ids of the likeliest bins that hold top_k ids or, without it, top_p of the probability.
void Filter::collect(const msgl_sampling &how, int32_t vocabulary) {
  const bool by_count = !keeps_all(how.top_k, vocabulary);
  double weights[kBins] = {};
  for (int32_t i = 0; i < vocabulary; ++i) weights[bins_[i]] += by_count ? 1.0 : exponentials_[i];
  total_ = std::accumulate(weights, weights + kBins, 0.0);
  const double wanted = by_count ? how.top_k : how.top_p < 1.0f ? how.top_p * total_ : total_;
  int32_t last = 0;
  for (double sum = weights[0]; sum < wanted && last < kBins - 1; sum += weights[last]) ++last;
  ids_.clear();
  for (int32_t i = 0; i < vocabulary; ++i) {
    if (bins_[i] <= last) ids_.push_back(i);
  }
}

/// Applies top_k, then top_p, to ids sorted by probability, and min_p.
void Filter::cut(const msgl_sampling &how, int32_t vocabulary) {
  const auto add = [&](double sum, int32_t id) { return sum + exponentials_[id]; };
  const bool by_count = !keeps_all(how.top_k, vocabulary);
  if (by_count || how.top_p < 1.0f) {
    std::sort(ids_.begin(), ids_.end(),
              [&](int32_t a, int32_t b) { return scaled_[a] != scaled_[b] ? scaled_[a] > scaled_[b] : a < b; });
  }
  if (by_count) {
    ids_.resize(how.top_k);
    total_ = std::accumulate(ids_.begin(), ids_.end(), 0.0, add);
  }
  if (how.top_p < 1.0f) {
    size_t kept = 0;
    for (double sum = 0; kept < ids_.size() && (kept == 0 || sum < how.top_p * total_); ++kept) {
      sum += exponentials_[ids_[kept]];
    }
    ids_.resize(kept);
  }
  std::erase_if(ids_, [&](int32_t id) { return exponentials_[id] < how.min_p; });
}

Best Filter::draw(const float *logits, int32_t vocabulary, const msgl_sampling &how) {
  scaled_.resize(vocabulary);
  exponentials_.resize(vocabulary);
  bins_.resize(vocabulary);
  const float largest = MSGL_PICK(scale_logits)(scaled_.data(), logits, vocabulary, how.temperature);
  MSGL_PICK(filter_bins)(exponentials_.data(), bins_.data(), scaled_.data(), vocabulary, largest);
  collect(how, vocabulary);
  cut(how, vocabulary);
  return MSGL_PICK(draw_listed)(scaled_.data(), ids_.data(), static_cast<int32_t>(ids_.size()), how);
}

bool is_filtered(const msgl_sampling &how, int32_t vocabulary) {
  return how.temperature > 0 && (!keeps_all(how.top_k, vocabulary) || how.top_p < 1.0f || how.min_p > 0.0f);
}

/// The best of the ids that a task answers for; of a row with filters the first chunk's task takes all.
Best sample_chunk(const float *logits, int32_t vocabulary, int32_t chunk, const msgl_sampling &how) {
  if (is_filtered(how, vocabulary)) {
    thread_local Filter filter;
    return chunk == 0 ? filter.draw(logits, vocabulary, how) : Best{-__builtin_inff(), vocabulary};
  }
  const int32_t id = chunk * kChunk, count = std::min(kChunk, vocabulary - id);
  if (how.temperature > 0) return MSGL_PICK(draw)(logits + id, count, id, how);
  return MSGL_PICK(largest_logit)(logits + id, count, id);
}

}  // namespace
}  // namespace msgl

using namespace msgl;

MSGL_EXPORT int32_t msgl_sample(msgl_device *device, int32_t *tokens, int32_t *token_table, const float *logits,
                                const msgl_sampling *sampling, int32_t count, int32_t vocabulary, int64_t token_stride,
                                int32_t flags) {
  if (vocabulary < 1) return fail("sample: a vocabulary of %d", vocabulary);
  return enqueue(device, [=](msgl_device &target) {
    const int64_t chunks = (vocabulary + kChunk - 1) / kChunk;
    std::vector<Best> best(count * chunks);
    target.pool.run(count * chunks, [&](int64_t index) {
      const int64_t row = index / chunks;
      best[index] =
          sample_chunk(logits + row * vocabulary, vocabulary, static_cast<int32_t>(index % chunks), sampling[row]);
    });
    for (int64_t row = 0; row < count; ++row) {
      const auto first = best.begin() + row * chunks;
      // The first of equals: chunks are in the order of their ids.
      const auto better = [](const Best &a, const Best &b) { return a.score < b.score; };
      const int32_t token = std::max_element(first, first + chunks, better)->id;
      tokens[row] = token;
      if (sampling[row].slot >= 0) token_table[sampling[row].slot * token_stride + sampling[row].position] = token;
    }
  });
}
