/*
 * sample.cu: one pass over the logits for the rows without filters: the largest logit, or the Gumbel-max draw
 * argmax(logit / temperature + noise(seed, position, id)), which samples from the softmax without computing it.
 *
 * Several blocks share a row; each puts its best candidate into the row's word of the scratch, and the block that
 * arrives last writes the token and leaves the scratch at zero for the next op.
 */
#include <algorithm>

#include "sample.cuh"

using namespace minisgl;

namespace {

struct Scratch {
  uint64_t best[max_sampling_rows];
  uint32_t arrived[max_sampling_rows];
};

constexpr int threads = 256;

/* grid (rows, parts). 32 registers let a multiprocessor have all its threads. */
template <bool Random>
__global__ void __maxnreg__(32) sample_kernel(const Sampling s, Scratch *scratch) {
  __shared__ uint64_t warps_best[32];
  dependency_wait();
  dependency_trigger();
  const int index = blockIdx.x;
  const msgl_sampling row = s.rows[index];
  if (Random && filters(row, s.vocabulary)) return;

  const int part = static_cast<int>(ceil_div(ceil_div(s.vocabulary, gridDim.y), 4) * 4);
  const int begin = min(s.vocabulary, static_cast<int>(blockIdx.y) * part), end = min(s.vocabulary, begin + part);
  Draw draw(row, begin);
  uint64_t best = 0;
  for_each_four(s.logits + static_cast<int64_t>(index) * s.vocabulary, begin, end, [&](int id, auto logits) {
    if (Random && row.temperature > 0.f)
      draw(logits, id);
    else
      best = max(best, candidate(logits, id));
  });
  if (Random && row.temperature > 0.f && begin < end) best = candidate(draw.best, draw.best_id);
  best = block_best(best, warps_best);
  if (threadIdx.x != 0) return;
  if (gridDim.y > 1) {
    atomicMax(reinterpret_cast<unsigned long long *>(scratch->best + index), best);
    __threadfence();
    if (atomicAdd(scratch->arrived + index, 1) != gridDim.y - 1) return;
    __threadfence();
    best = __ldcg(reinterpret_cast<const unsigned long long *>(scratch->best + index));
    scratch->best[index] = 0;
    scratch->arrived[index] = 0;
  }
  write_token(s, index, row, candidate_id(best));
}

}  // namespace

int32_t msgl_sample(msgl_device *device, int32_t *tokens, int32_t *token_table, const float *logits,
                    const msgl_sampling *sampling, int32_t count, int32_t vocabulary, int64_t token_stride,
                    int32_t flags) {
  return on_device(device, [&] {
    if (count > max_sampling_rows) fail("%d rows to sample are more than %d", count, max_sampling_rows);
    if (count == 0) return;
    const Sampling arguments{tokens, token_table, logits, sampling, vocabulary, token_stride};
    const int parts = std::clamp(8 * device->multiprocessors / count, 1, 64);
    Scratch *scratch = device->sampling_scratch.get<Scratch>();
    const auto kernel = flags & MSGL_SAMPLE_RANDOM ? sample_kernel<true> : sample_kernel<false>;
    launch(device, Follow::dependent, kernel, dim3(count, parts), threads, 0, arguments, scratch);
    if (flags & MSGL_SAMPLE_FILTER) enqueue_filtered_sampling(device, arguments, count);
  });
}

size_t minisgl::sampling_scratch_bytes() { return sizeof(Scratch) + logprobs_scratch_bytes(); }
