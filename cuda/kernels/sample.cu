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

/*
 * The best draw of this thread's share of begin .. end - 1, with its next logits under way while it draws. The warps of the
 * block tell each other how far they are, so that few ids are looked at closely. warps_bar: a word of shared memory.
 */
DEVICE uint64_t best_draw(const msgl_sampling &row, const float *logits, int begin, int end, uint32_t *warps_bar) {
  Draw draw(row, begin);
  if (threadIdx.x == 0) *warps_bar = 0;
  __syncthreads();
  if (in_fours(logits, begin, end)) {
    int id = begin + 4 * threadIdx.x;
    const auto load = [&](int id) {
      return id < end ? *reinterpret_cast<const float4 *>(logits + id)
                      : make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    };
    float4 next = load(id);
    draw.raise(next, draw.words(static_cast<uint32_t>(id) / 4));
    draw.meet(warps_bar);
    __syncthreads();
    draw.meet(warps_bar);
#pragma unroll 2
    for (int all = begin; all < end; all += 4 * threads, id += 4 * threads) {
      const float4 four = next;
      next = load(id + 4 * threads);
      const float most = fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w));
      if (__all_sync(~0u, draw.missing(most) > Draw::most_noise)) continue;
      const Philox drawn = draw.words(static_cast<uint32_t>(id) / 4);
      if (!__any_sync(~0u, draw.promising(four, drawn))) continue;
      draw.meet(warps_bar);
      if (!__any_sync(~0u, draw.promising(four, drawn))) continue;
      draw.consider(four, id, drawn);
      draw.meet(warps_bar);
    }
  } else {
    for (int id = begin + threadIdx.x; id < end; id += threads) draw(logits[id], id);
  }
  return begin < end ? candidate(draw.best, draw.best_id) : 0;
}

/* grid (rows, parts) */
template <bool Random>
__global__ void __launch_bounds__(threads, 6) sample_kernel(const Sampling s, Scratch *scratch) {
  __shared__ uint64_t warps_best[32];
  __shared__ uint32_t warps_bar;
  dependency_wait();
  dependency_trigger();
  const int index = blockIdx.x;
  const msgl_sampling row = s.rows[index];
  if (Random && filters(row, s.vocabulary)) return;

  const int part = static_cast<int>(ceil_div(ceil_div(s.vocabulary, gridDim.y), 4) * 4);
  const int begin = min(s.vocabulary, static_cast<int>(blockIdx.y) * part), end = min(s.vocabulary, begin + part);
  const float *logits = s.logits + static_cast<int64_t>(index) * s.vocabulary;
  uint64_t best = 0;
  if (Random && row.temperature > 0.f)
    best = best_draw(row, logits, begin, end, &warps_bar);
  else
    for_each_four(logits, begin, end, [&](int id, auto values) { best = max(best, candidate(values, id)); });
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
    const bool random = flags & MSGL_SAMPLE_RANDOM;
    // What a block of draws does before its first id takes as long as many ids: few blocks where there are few rows.
    const int blocks = (!random ? 8 : count <= 64 ? 2 : 6) * device->multiprocessors;
    const int parts = std::clamp(blocks / count, 1, 64);
    Scratch *scratch = device->sampling_scratch.get<Scratch>();
    const auto kernel = random ? sample_kernel<true> : sample_kernel<false>;
    launch(device, Follow::dependent, kernel, dim3(count, parts), threads, 0, arguments, scratch);
    if (flags & MSGL_SAMPLE_FILTER) enqueue_filtered_sampling(device, arguments, count);
  });
}

size_t minisgl::sampling_scratch_bytes() { return sizeof(Scratch) + logprobs_scratch_bytes(); }
