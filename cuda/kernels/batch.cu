/*
 * batch.cu: from the few words a sequence that the host uploads to what the kernels of a step read.
 *
 * A sequence's row:  slot, start, count, token_begin, page_begin, sample_index, sample_count
 *
 *   token_table [slots, token_stride]   slot's row:  t0 t1 t2 | t3 t4 |        start = 3, count = 2
 *   page_table  [slots, page_stride]    slot's row:  p0 p1 p2                  page_size = 2, context 5
 *   ids         ... | t3 t4 | ...       from token_begin on
 *   cache_rows  ... | 2 p1 + 1, 2 p2 | ...
 *   pages       ... | p0 p1 p2 | ...    from page_begin on; last_page_length = 1
 */
#include "vector.cuh"

using namespace minisgl;

namespace {

/* A block a patch. Where patches overlap, the last one counts, as if they were written one after the other. */
__global__ void table_write_kernel(int32_t *table, const int4 *patches, const int32_t *values, int count,
                                   int64_t row_stride) {
  dependency_wait();
  dependency_trigger();
  const int4 patch = patches[blockIdx.x];
  const auto covers = [&](const int4 &later, int begin, int end) {
    return later.x == patch.x && later.y < end && begin < later.y + later.z;
  };
  bool overlap = false;
  for (int i = blockIdx.x + 1 + threadIdx.x; i < count; i += blockDim.x)
    overlap |= covers(patches[i], patch.y, patch.y + patch.z);
  const bool contested = __syncthreads_or(overlap);
  int32_t *row = table + patch.x * row_stride;
  for (int i = threadIdx.x; i < patch.z; i += blockDim.x) {
    const int column = patch.y + i;
    bool mine = true;
    for (int j = blockIdx.x + 1; contested && j < count; j++) mine &= !covers(patches[j], column, column + 1);
    if (mine) row[column] = values[patch.w + i];
  }
}

struct Expansion {
  int32_t *ids, *positions, *cache_rows, *sample_rows, *query_begin, *page_begin, *pages, *last_page_length;
  const int32_t *sequence_rows, *token_table, *page_table;
  int32_t sequences;
  int64_t token_stride, page_stride;
  int32_t page_size;
};

/* grid (sequences, parts): the blocks of a sequence share its tokens and pages. */
__global__ void expand_kernel(const Expansion e) {
  dependency_wait();
  dependency_trigger();
  const int sequence = blockIdx.x;
  const int32_t *row = e.sequence_rows + 7 * sequence;
  const int slot = row[0], start = row[1], count = row[2], token_begin = row[3], page_begin = row[4];
  const int sample_index = row[5], sample_count = row[6];
  const int context = start + count;
  const int pages = (context + e.page_size - 1) / e.page_size;
  const int thread = blockIdx.y * blockDim.x + threadIdx.x, threads = gridDim.y * blockDim.x;
  const int32_t *tokens_of_slot = e.token_table + slot * e.token_stride;
  const int32_t *pages_of_slot = e.page_table + slot * e.page_stride;

  if (thread == 0) {
    e.query_begin[sequence] = token_begin;
    e.page_begin[sequence] = page_begin;
    e.last_page_length[sequence] = context - (pages - 1) * e.page_size;
    if (sequence == e.sequences - 1) {
      e.query_begin[e.sequences] = token_begin + count;
      e.page_begin[e.sequences] = page_begin + pages;
    }
  }
  for (int i = thread; i < count; i += threads) {
    const int position = start + i;
    e.ids[token_begin + i] = tokens_of_slot[position];
    e.positions[token_begin + i] = position;
    e.cache_rows[token_begin + i] = pages_of_slot[position / e.page_size] * e.page_size + position % e.page_size;
  }
  for (int i = thread; i < sample_count; i += threads)
    e.sample_rows[sample_index + i] = token_begin + count - sample_count + i;
  for (int i = thread; i < pages; i += threads) e.pages[page_begin + i] = pages_of_slot[i];
}

}  // namespace

int32_t msgl_table_write(msgl_device *device, int32_t *table, const int32_t *patches, const int32_t *values,
                         int32_t count, int64_t row_stride) {
  return on_device(device, [&] {
    launch(device, Follow::dependent, table_write_kernel, count, 128, 0, table, reinterpret_cast<const int4 *>(patches),
           values, count, row_stride);
  });
}

int32_t msgl_expand(msgl_device *device, int32_t *ids, int32_t *positions, int32_t *cache_rows, int32_t *sample_rows,
                    int32_t *query_begin, int32_t *page_begin, int32_t *pages, int32_t *last_page_length,
                    const int32_t *sequence_rows, const int32_t *token_table, const int32_t *page_table,
                    int32_t sequences, int32_t tokens, int64_t token_stride, int64_t page_stride, int32_t page_size) {
  return on_device(device, [&] {
    if (sequences == 0) return;
    // Two blocks of 256 a multiprocessor are enough to hide the latency; a long context alone gets many.
    const int parts = std::max(1, std::min(32, 2 * device->multiprocessors / sequences));
    launch(device, Follow::dependent, expand_kernel, dim3(sequences, parts), 256, 0,
           Expansion{ids, positions, cache_rows, sample_rows, query_begin, page_begin, pages, last_page_length,
                     sequence_rows, token_table, page_table, sequences, token_stride, page_stride, page_size});
  });
}
