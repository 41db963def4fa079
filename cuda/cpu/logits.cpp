// What is done to a row of logits before it is sampled, and what is told of it afterwards.
#include <algorithm>
#include <bit>
#include <numeric>

#include "device.h"
#include "sampling.h"

using namespace msgl;

namespace {

/// Calls `apply` for each distinct id of ids[0 .. count). seen: a bit for each id, zero before and afterwards.
template <class Apply>
void for_each_distinct(const int32_t *ids, int32_t count, int32_t *seen, const Apply &apply) {
  for (int32_t i = 0; i < count; ++i) {
    const int32_t bit = static_cast<int32_t>(1u << ids[i] % 32);
    if ((seen[ids[i] / 32] & bit) != 0) continue;
    seen[ids[i] / 32] |= bit;
    apply(ids[i]);
  }
  for (int32_t i = 0; i < count; ++i) seen[ids[i] / 32] = 0;
}

void penalize_row(float *logits, int32_t *seen, const int32_t *tokens, const msgl_penalties &how) {
  if (how.repetition != 1.0f) {
    for_each_distinct(tokens, how.length, seen, [&](int32_t id) {
      logits[id] = logits[id] > 0 ? logits[id] / how.repetition : logits[id] * how.repetition;
    });
  }
  const int32_t *drawn = tokens + how.prompt_length;
  const int32_t count = how.length - how.prompt_length;
  if (how.presence != 0) for_each_distinct(drawn, count, seen, [&](int32_t id) { logits[id] -= how.presence; });
  if (how.frequency != 0) for (int32_t i = 0; i < count; ++i) logits[drawn[i]] -= how.frequency;
}

/// The `count` ids with the largest logits, descending; of equal ones the lower id first.
void find_top(int32_t *ids, int32_t count, const float *logits, int32_t vocabulary) {
  const auto before = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  std::iota(ids, ids + count, 0);
  std::make_heap(ids, ids + count, before);  // the least of them is in front
  const auto next = [&](int32_t id) { return MSGL_PICK(first_above)(logits, id, vocabulary, logits[ids[0]]); };
  for (int32_t id = next(count); id < vocabulary; id = next(id + 1)) {
    std::pop_heap(ids, ids + count, before);
    ids[count - 1] = id;
    std::push_heap(ids, ids + count, before);
  }
  std::sort_heap(ids, ids + count, before);
}

}  // namespace

MSGL_EXPORT int32_t msgl_logit_bias(msgl_device *device, float *logits, const int32_t *entries, int32_t count,
                                    int32_t vocabulary) {
  return enqueue(device, [=](msgl_device &) {
    for (int64_t i = 0; i < count; ++i) {
      const int32_t *entry = entries + 3 * i;  // row, id, value
      logits[int64_t{entry[0]} * vocabulary + entry[1]] += std::bit_cast<float>(entry[2]);
    }
  });
}

MSGL_EXPORT int32_t msgl_penalize(msgl_device *device, float *logits, int32_t *seen, const int32_t *token_table,
                                  const msgl_penalties *penalties, int32_t count, int32_t vocabulary,
                                  int64_t token_stride) {
  return enqueue(device, [=](msgl_device &target) {
    const int64_t words = 2 * ((int64_t{vocabulary} + 31) / 32);
    target.pool.run(count, [&](int64_t i) {
      const msgl_penalties &how = penalties[i];
      penalize_row(logits + int64_t{how.row} * vocabulary, seen + i * words, token_table + how.slot * token_stride, how);
    });
  });
}

MSGL_EXPORT int32_t msgl_logprobs(msgl_device *device, float *logprobs, int32_t *top_ids, float *top_logprobs,
                                  const float *logits, const int32_t *tokens, const msgl_logprob_row *rows,
                                  int32_t count, int32_t vocabulary, int32_t top) {
  if (top < 0 || top > MSGL_MAX_TOP_LOGPROBS || top > vocabulary) return fail("logprobs: the first %d", top);
  return enqueue(device, [=](msgl_device &target) {
    target.pool.run(count, [&](int64_t i) {
      const msgl_logprob_row &wanted = rows[i];
      const float *row = logits + int64_t{wanted.row} * vocabulary;
      const double all = MSGL_PICK(log_sum_exp)(row, vocabulary);
      logprobs[i] = static_cast<float>(row[wanted.token >= 0 ? wanted.token : tokens[wanted.row]] - all);
      if (top == 0) return;
      int32_t *ids = top_ids + i * top;
      find_top(ids, top, row, vocabulary);
      for (int32_t j = 0; j < top; ++j) top_logprobs[i * top + j] = static_cast<float>(row[ids[j]] - all);
    });
  });
}

// One algorithm computes every product here.

MSGL_EXPORT int32_t msgl_linear_tune(msgl_device *device, char *text, int64_t bytes, int64_t n, int64_t k,
                                     int32_t tokens, int32_t dtype, int32_t out_dtype, int32_t variant) {
  if (bytes > 0) text[0] = '\0';
  return 0;
}

MSGL_EXPORT int32_t msgl_linear_algorithms(msgl_device *device, const char *table, int32_t *used) {
  *used = 0;
  return 0;
}
