/*
 * sample_filter.cu: sampling with top-k, top-p and min-p. A block has one row and reads it once per pass; what is kept is
 * found exactly, without sorting:
 *
 *   order      candidates fall by logit, then rise by id; `key` is one integer that has this order
 *   coarse     2048 bins of 1/64 nat below the largest logit, with the count and the mass of each
 *   boundary   the bin in which the k-th candidate lies, or the one at which the mass reaches p
 *   narrowing  bins of the keys within the boundary, until its last bin is one candidate or is taken whole
 *
 * Mass is exp((logit - largest) / temperature) in units of 2^-40, an integer, so that sums have no order.
 */
#include "sample.cuh"

namespace minisgl {
namespace {

constexpr int threads = 1024, bins = 2048, id_bits = 20;
constexpr float bins_per_nat = 64.f, mass_unit = 1099511627776.f;  // 2^40

struct Amount {
  uint32_t count;
  uint64_t mass;
};

/* Counts and masses of bins; 64-bit sums as two words, since shared memory adds 32 bits at once. */
struct Histogram {
  uint32_t count[bins], low[bins], high[bins];

  DEVICE void clear() {
    for (int i = threadIdx.x; i < bins; i += threads) count[i] = low[i] = high[i] = 0;
  }
  DEVICE void add(int bin, uint64_t mass) {
    const uint32_t added = static_cast<uint32_t>(mass);
    atomicAdd(count + bin, 1);
    const uint32_t before = atomicAdd(low + bin, added);
    const uint32_t carry = static_cast<uint32_t>(mass >> 32) + (before + added < before);
    if (carry != 0) atomicAdd(high + bin, carry);
  }
  DEVICE Amount at(int bin) const { return {count[bin], static_cast<uint64_t>(high[bin]) << 32 | low[bin]}; }
};

struct Shared {
  Histogram histogram;
  uint64_t warps_count[threads / 32], warps_mass[threads / 32], warps_best[32];
  float warps_maximum[32];
  int boundary;
  Amount before, within;
};

/* The candidates that are kept: those in coarse bins before `bin`, and in it those with at least `key`. */
struct Kept {
  int bin = bins;
  uint64_t key = 0;
};

struct Row {
  const float *logits;
  int vocabulary;
  float maximum, inverse_temperature;

  DEVICE uint64_t key(float logit, int id) const {
    return static_cast<uint64_t>(ordered(logit)) << id_bits | ((1u << id_bits) - 1 - id);
  }
  DEVICE int bin(float logit) const {
    const float distance = (maximum - logit) * inverse_temperature * bins_per_nat;
    return distance < bins - 1 ? static_cast<int>(distance) : bins - 1;  // NaN is last
  }
  DEVICE float probability(float logit) const { return expf((logit - maximum) * inverse_temperature); }
  DEVICE uint64_t mass(float logit) const {
    return isnan(logit) ? 0 : static_cast<uint64_t>(probability(logit) * mass_unit);
  }
  DEVICE bool keeps(const Kept &kept, float logit, int id) const {
    const int b = bin(logit);
    return b < kept.bin || (b == kept.bin && key(logit, id) >= kept.key);
  }
};

/* Exclusive sums over the threads of a block. */
DEVICE Amount scan(Amount amount, Shared &s, Amount &total) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint64_t count = amount.count, mass = amount.mass;
#pragma unroll
  for (int offset = 1; offset < 32; offset <<= 1) {
    const uint64_t c = __shfl_up_sync(~0u, count, offset), m = __shfl_up_sync(~0u, mass, offset);
    if (lane >= offset) count += c, mass += m;
  }
  if (lane == 31) s.warps_count[warp] = count, s.warps_mass[warp] = mass;
  __syncthreads();
  uint64_t count_before = 0, mass_before = 0;
  total = {0, 0};
  for (int i = 0; i < threads / 32; i++) {
    if (i == warp) count_before = total.count, mass_before = total.mass;
    total.count += static_cast<uint32_t>(s.warps_count[i]);
    total.mass += s.warps_mass[i];
  }
  return {static_cast<uint32_t>(count_before + count) - amount.count, mass_before + mass - amount.mass};
}

/*
 * The first bin at which the running sum reaches what is needed: `count` candidates or, where that is 0, the share
 * `part` of the mass of all bins (given as 0 once needed_mass is known). Leaves boundary, before and within in s.
 */
DEVICE void find_boundary(Shared &s, uint32_t count, float part, uint64_t &needed_mass) {
  if (threadIdx.x == 0) s.boundary = bins - 1, s.before = s.within = {0, 0};  // stays where logits are not finite
  __syncthreads();
  const int first = 2 * threadIdx.x;
  const Amount a = s.histogram.at(first), b = s.histogram.at(first + 1);
  Amount total;
  const Amount before = scan({a.count + b.count, a.mass + b.mass}, s, total);
  if (needed_mass == 0) {
    const double needed = ceil(static_cast<double>(part) * static_cast<double>(total.mass));
    needed_mass = max(uint64_t{1}, min(total.mass, static_cast<uint64_t>(max(needed, 0.0))));
  }
  const auto reached = [&](Amount sum) { return count > 0 ? sum.count >= count : sum.mass >= needed_mass; };
  const Amount middle{before.count + a.count, before.mass + a.mass};
  const Amount after{middle.count + b.count, middle.mass + b.mass};
  if (!reached(before) && reached(middle)) s.boundary = first, s.before = before, s.within = a;
  if (!reached(middle) && reached(after)) s.boundary = first + 1, s.before = middle, s.within = b;
  __syncthreads();
}

/* Of the candidates kept so far, the first `count`, or, where that is 0, the first whose mass reaches `part` of all. */
DEVICE Kept select(const Row &row, const Kept &kept, uint32_t count, float part, Shared &s) {
  uint64_t needed_mass = 0;
  s.histogram.clear();
  __syncthreads();
  for_each_logit(row.logits, 0, row.vocabulary, [&](int id, float logit) {
    if (row.keeps(kept, logit, id)) s.histogram.add(row.bin(logit), row.mass(logit));
  });
  find_boundary(s, count, part, needed_mass);
  Kept result{s.boundary, 0};
  uint64_t low = 0, high = (uint64_t{1} << (32 + id_bits)) - 1;
  while (s.within.count > 1 && low < high && !(count > 0 && s.before.count + s.within.count == count)) {
    // What is left to find lies in keys low .. high of the boundary bin; of it, before.* came earlier.
    if (count > 0) count -= s.before.count;
    else needed_mass -= s.before.mass;
    const int shift = max(0, 64 - __clzll(high - low) - 11);
    __syncthreads();
    s.histogram.clear();
    __syncthreads();
    for_each_logit(row.logits, 0, row.vocabulary, [&](int id, float logit) {
      const uint64_t key = row.key(logit, id);
      if (key >= low && key <= high && row.bin(logit) == result.bin && row.keeps(kept, logit, id))
        s.histogram.add(static_cast<int>((high - key) >> shift), row.mass(logit));
    });
    find_boundary(s, count, 0.f, needed_mass);
    high -= static_cast<uint64_t>(s.boundary) << shift;
    const uint64_t width = (uint64_t{1} << shift) - 1;
    low = high - low > width ? high - width : low;
    result.key = low;
  }
  // A bin may be taken whole where an earlier filter has cut it: keep that cut.
  if (result.bin == kept.bin) result.key = max(result.key, kept.key);
  __syncthreads();
  return result;
}

__global__ void __launch_bounds__(threads) sample_filter_kernel(const Sampling s) {
  __shared__ Shared shared;
  dependency_wait();
  dependency_trigger();
  const int index = blockIdx.x;
  const msgl_sampling parameters = s.rows[index];
  if (!filters(parameters, s.vocabulary)) return;
  Row row{s.logits + static_cast<int64_t>(index) * s.vocabulary, s.vocabulary, -INFINITY, 1.f / parameters.temperature};
  for_each_logit(row.logits, 0, row.vocabulary, [&](int, float logit) { row.maximum = fmaxf(row.maximum, logit); });
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1)
    row.maximum = fmaxf(row.maximum, __shfl_xor_sync(~0u, row.maximum, offset));
  if (threadIdx.x % 32 == 0) shared.warps_maximum[threadIdx.x / 32] = row.maximum;
  __syncthreads();
  for (float maximum : shared.warps_maximum) row.maximum = fmaxf(row.maximum, maximum);

  Kept kept;
  if (parameters.top_k > 0 && parameters.top_k < s.vocabulary) kept = select(row, kept, parameters.top_k, 0.f, shared);
  if (parameters.top_p < 1.f) kept = select(row, kept, 0, parameters.top_p, shared);
  Draw draw(parameters, 0);
  for_each_logit(row.logits, 0, row.vocabulary, [&](int id, float logit) {
    if (!row.keeps(kept, logit, id) || row.probability(logit) < parameters.min_p) return;
    draw(logit, id);
  });
  const uint64_t best = block_best(candidate(draw.best, draw.best_id), shared.warps_best);
  if (threadIdx.x == 0) write_token(s, index, parameters, candidate_id(best));
}

}  // namespace

void enqueue_filtered_sampling(msgl_device *device, const Sampling &sampling, int count) {
  if (sampling.vocabulary > 1 << id_bits) fail("a vocabulary of %d ids is too large for filters", sampling.vocabulary);
  launch(device, Follow::dependent, sample_filter_kernel, count, threads, 0, sampling);
}

}  // namespace minisgl
