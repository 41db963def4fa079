/*
 * logits.cu: what is done to rows of logits before they are sampled (bias, penalties), and what is told of them after
 * (log-probabilities).
 *
 * msgl_logprobs reads a row once. Sums of exponentials are kept as doubles times powers of two, so that a sum hardly
 * depends on its order and a row not on how many blocks share it. For the most probable ids each thread keeps the best
 * of its share; a warp takes the best of its lanes `top` times, and looks for the next one in the share of the lane
 * that it took from. Lists of warps, then of blocks, are merged in the same way.
 */
#include <algorithm>

#include "sample.cuh"

using namespace minisgl;

namespace {

__global__ void logit_bias_kernel(float *logits, const int32_t *entries, int count, int vocabulary) {
  dependency_wait();
  dependency_trigger();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int32_t *entry = entries + 3 * int64_t{i};
  atomicAdd(logits + static_cast<int64_t>(entry[0]) * vocabulary + entry[1], __int_as_float(entry[2]));
}

/* ---- penalties ----------------------------------------------------------------------------------------------------- */

/* Calls f(id) for this thread's share of ids[begin .. end). */
template <class F>
DEVICE void for_each_token(const int32_t *__restrict__ ids, int begin, int end, F f) {
#pragma unroll 4
  for (int i = begin + threadIdx.x; i < end; i += blockDim.x) f(ids[i]);
}

/* Sets the id's bit; true for the one thread that was first. */
DEVICE bool is_first(uint32_t *bits, int id) {
  const uint32_t bit = 1u << id % 32;
  return (atomicOr(bits + id / 32, bit) & bit) == 0;
}

/* A block a row. Each phase changes a logit by one thread, or by equal steps, so that its order does not show. */
__global__ void __launch_bounds__(1024)
    penalize_kernel(float *logits, uint32_t *seen, const int32_t *token_table, const msgl_penalties *penalties,
                    int vocabulary, int64_t token_stride) {
  dependency_wait();
  dependency_trigger();
  const msgl_penalties how = penalties[blockIdx.x];
  float *row = logits + static_cast<int64_t>(how.row) * vocabulary;
  const int32_t *tokens = token_table + how.slot * token_stride;
  const int64_t words = ceil_div(vocabulary, 32);
  uint32_t *in_context = seen + 2 * words * blockIdx.x, *drawn = in_context + words;
  const bool repetition = how.repetition != 1.f, presence = how.presence != 0.f;
  if (repetition) {
    for_each_token(tokens, 0, how.length, [&](int id) {
      if (is_first(in_context, id)) row[id] = row[id] > 0.f ? row[id] / how.repetition : row[id] * how.repetition;
    });
  }
  __syncthreads();
  if (presence) {
    for_each_token(tokens, how.prompt_length, how.length, [&](int id) {
      if (is_first(drawn, id)) row[id] -= how.presence;
    });
  }
  __syncthreads();
  if (how.frequency != 0.f)
    for_each_token(tokens, how.prompt_length, how.length, [&](int id) { atomicAdd(row + id, -how.frequency); });
  if (repetition) for_each_token(tokens, 0, how.length, [&](int id) { in_context[id / 32] = 0; });
  if (presence) for_each_token(tokens, how.prompt_length, how.length, [&](int id) { drawn[id / 32] = 0; });
}

/* ---- log-probabilities --------------------------------------------------------------------------------------------- */

constexpr int threads = 512, warps = threads / 32, max_parts = 32, max_partials = 2048;

/* A sum of exponentials e^x: sum * 2^exponent. */
struct ExponentialSum {
  double sum = 0;
  int exponent = -(1 << 30);

  DEVICE void add(float x) {
    constexpr float log2e = 0x1.715476p+0f, log2e_rest = 0x1.4ae0c0p-26f;
    const float n = fminf(fmaxf(rintf(x * log2e), -1e9f), 1e9f);
    const float value = exp2f(fmaf(x, log2e_rest, fmaf(x, log2e, -n)));
    const int shift = static_cast<int>(n) - exponent;
    if (shift > 0) {
      sum = ldexp(sum, -shift) + value;
      exponent += shift;
    } else {
      sum += value * (shift > -127 ? __int_as_float((shift + 127) << 23) : 0.f);
    }
  }
  DEVICE void add(double other_sum, int other_exponent) {
    const int larger = max(exponent, other_exponent);
    sum = ldexp(sum, exponent - larger) + ldexp(other_sum, other_exponent - larger);
    exponent = larger;
  }
  /* Over the lanes of a warp, given to all of them. */
  DEVICE void add_lanes() {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1)
      add(__shfl_xor_sync(~0u, sum, offset), __shfl_xor_sync(~0u, exponent, offset));
  }
  DEVICE double logarithm() const { return exponent * 0.693147180559945309417 + log(sum); }
};

/* What is known of a part of a row: the sum of its exponentials and its best candidates, descending. */
struct Partial {
  double sum;
  int exponent;
  uint64_t top[MSGL_MAX_TOP_LOGPROBS];  // 0: there is none left
};

struct Scratch {
  Partial partials[max_partials];
  uint32_t arrived[max_partials];
};

struct Logprobs {
  float *logprobs;
  int32_t *top_ids;
  float *top_logprobs;
  const float *logits;
  const int32_t *tokens;
  const msgl_logprob_row *rows;
  int vocabulary, top;
};

DEVICE uint64_t warp_max(uint64_t value) {
  const uint32_t high = __reduce_max_sync(~0u, static_cast<uint32_t>(value >> 32));
  const uint32_t low = __reduce_max_sync(~0u, value >> 32 == high ? static_cast<uint32_t>(value) : 0);
  return static_cast<uint64_t>(high) << 32 | low;
}

/* The least of the block's warps' candidates at a place of their lists. */
DEVICE uint64_t least_of_warps(const Partial *partials, int place) {
  uint64_t least = ~uint64_t{0};
  for (int i = 0; i < warps; i++) least = min(least, partials[i].top[place]);
  return least;
}

/*
 * What this thread's warp finds in logits begin .. end - 1, written to its place of partials[warps]. Once each warp has
 * ceil(top / warps) candidates, those that are less than the least of these are not among the block's first `top`.
 */
DEVICE void find_partial(Partial *partials, const float *logits, int begin, int end, int top) {
  const int lane = threadIdx.x % 32, sure = static_cast<int>(ceil_div(top, warps));
  Partial &mine = partials[threadIdx.x / 32];
  ExponentialSum sum;
  float best = -INFINITY;
  int best_id = -1;
  for_each_logit(logits, begin, end, [&](int id, float logit) {
    sum.add(logit);
    if (best_id < 0) best_id = id;
    if (logit > best) best = logit, best_id = id;
  });
  sum.add_lanes();
  if (lane == 0) mine.sum = sum.sum, mine.exponent = sum.exponent;
  uint64_t own = best_id < 0 ? 0 : candidate(best, best_id), bound = 1;  // 0 is no candidate
  for (int i = 0; i < top; i++) {
    const uint64_t taken = warp_max(own);
    if (lane == 0) mine.top[i] = taken;
    if (i == sure - 1) {
      __syncthreads();
      bound = max(bound, least_of_warps(partials, i));
    }
    if (taken < bound) {
      if (i < sure) continue;  // to the barrier
      for (int j = i + lane; j < top; j += 32) mine.top[j] = 0;
      return;
    }
    const int owner = __ffs(__ballot_sync(~0u, own == taken)) - 1;
    uint64_t next = 0;
    const auto consider = [&](int id, float logit) {
      const uint64_t other = candidate(logit, id);
      if (other < taken) next = max(next, other);
    };
    for_each_logit(logits, begin, end, consider, threadIdx.x - lane + owner + threads * lane, threads * 32);
    next = warp_max(next);
    if (lane == owner) own = next;
  }
}

/* One warp makes one of up to 32 partials, which other warps or blocks have written. */
DEVICE void merge(Partial &merged, const volatile Partial *partials, int count, int top) {
  const int lane = threadIdx.x % 32;
  ExponentialSum sum;
  if (lane < count) sum.add(partials[lane].sum, partials[lane].exponent);
  sum.add_lanes();
  if (lane == 0) merged.sum = sum.sum, merged.exponent = sum.exponent;
  for (int i = 0, next = 0; i < top; i++) {
    const uint64_t own = lane < count && next < top ? partials[lane].top[next] : 0;
    const uint64_t taken = warp_max(own);
    if (lane == 0) merged.top[i] = taken;
    if (own == taken) next++;
  }
}

/* grid (rows, parts): the blocks of a row each read a part of it; the one that arrives last writes the result. */
__global__ void __launch_bounds__(threads) logprobs_kernel(const Logprobs l, Scratch *scratch) {
  __shared__ Partial warps_partials[warps], whole;
  dependency_wait();
  dependency_trigger();
  const int index = blockIdx.x, lane = threadIdx.x % 32, parts = gridDim.y;
  const msgl_logprob_row wanted = l.rows[index];
  const float *row = l.logits + static_cast<int64_t>(wanted.row) * l.vocabulary;
  const int part = static_cast<int>(ceil_div(ceil_div(l.vocabulary, parts), 4) * 4);
  const int begin = min(l.vocabulary, static_cast<int>(blockIdx.y) * part), end = min(l.vocabulary, begin + part);
  find_partial(warps_partials, row, begin, end, l.top);
  __syncthreads();
  if (threadIdx.x >= 32) return;
  if (parts == 1) {
    merge(whole, warps_partials, warps, l.top);
  } else {
    Partial *partials = scratch->partials + index * parts;
    merge(partials[blockIdx.y], warps_partials, warps, l.top);
    __threadfence();
    const uint32_t arrived = lane == 0 ? atomicAdd(scratch->arrived + index, 1) : 0;
    if (__shfl_sync(~0u, arrived, 0) != parts - 1) return;
    __threadfence();
    merge(whole, partials, parts, l.top);
    if (lane == 0) scratch->arrived[index] = 0;
  }
  __syncwarp();
  const double all = ExponentialSum{whole.sum, whole.exponent}.logarithm();
  if (lane == 0)
    l.logprobs[index] = static_cast<float>(row[wanted.token >= 0 ? wanted.token : l.tokens[wanted.row]] - all);
  if (lane >= l.top) return;
  const int id = candidate_id(whole.top[lane]);
  l.top_ids[static_cast<int64_t>(index) * l.top + lane] = id;
  l.top_logprobs[static_cast<int64_t>(index) * l.top + lane] = static_cast<float>(row[id] - all);
}

}  // namespace

int32_t msgl_logit_bias(msgl_device *device, float *logits, const int32_t *entries, int32_t count,
                        int32_t vocabulary) {
  return on_device(device, [&] {
    launch(device, Follow::dependent, logit_bias_kernel, ceil_div(count, 128), 128, 0, logits, entries, count,
           vocabulary);
  });
}

int32_t msgl_penalize(msgl_device *device, float *logits, int32_t *seen, const int32_t *token_table,
                      const msgl_penalties *penalties, int32_t count, int32_t vocabulary, int64_t token_stride) {
  return on_device(device, [&] {
    launch(device, Follow::dependent, penalize_kernel, count, 1024, 0, logits, reinterpret_cast<uint32_t *>(seen),
           token_table, penalties, vocabulary, token_stride);
  });
}

int32_t msgl_logprobs(msgl_device *device, float *logprobs, int32_t *top_ids, float *top_logprobs, const float *logits,
                      const int32_t *tokens, const msgl_logprob_row *rows, int32_t count, int32_t vocabulary,
                      int32_t top) {
  return on_device(device, [&] {
    if (top < 0 || top > MSGL_MAX_TOP_LOGPROBS || top > vocabulary) fail("logprobs: the first %d", top);
    if (count == 0) return;
    const int parts = std::clamp(std::min(4 * device->multiprocessors, max_partials) / count, 1, max_parts);
    const size_t offset = sampling_scratch_bytes() - logprobs_scratch_bytes();
    Scratch *scratch = reinterpret_cast<Scratch *>(device->sampling_scratch.get<char>() + offset);
    launch(device, Follow::dependent, logprobs_kernel, dim3(count, parts), threads, 0,
           Logprobs{logprobs, top_ids, top_logprobs, logits, tokens, rows, vocabulary, top}, scratch);
  });
}

size_t minisgl::logprobs_scratch_bytes() { return sizeof(Scratch); }
