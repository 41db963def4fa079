// The step's batch: tables of pages and tokens, and what msgl_expand makes of the scheduler's rows.
#include <algorithm>

#include "device.h"

namespace {

/// Words of a row of sequence_rows, as minisgl.h orders them.
struct SequenceRow {
  int32_t slot, start, count, token_begin, page_begin, sample_index, sample_count;
};

struct Expansion {
  int32_t *ids, *positions, *cache_rows, *sample_rows, *query_begin, *page_begin, *pages, *last_page_length;
};

void expand_row(const Expansion &out, int32_t index, const SequenceRow &row, const int32_t *tokens,
                const int32_t *row_pages, int32_t page_size) {
  const int32_t context = row.start + row.count;
  const int32_t pages = (context + page_size - 1) / page_size;
  std::copy_n(tokens + row.start, row.count, out.ids + row.token_begin);
  for (int32_t i = 0; i < row.count; ++i) {
    const int32_t position = row.start + i;
    out.positions[row.token_begin + i] = position;
    out.cache_rows[row.token_begin + i] = row_pages[position / page_size] * page_size + position % page_size;
  }
  std::copy_n(row_pages, pages, out.pages + row.page_begin);
  out.last_page_length[index] = context - (pages - 1) * page_size;
  const int32_t end = row.token_begin + row.count;
  for (int32_t i = 0; i < row.sample_count; ++i) out.sample_rows[row.sample_index + i] = end - row.sample_count + i;
  out.query_begin[index] = row.token_begin;
  out.page_begin[index] = row.page_begin;
  // The next row overwrites these with the same sums; after the last row they stay.
  out.query_begin[index + 1] = end;
  out.page_begin[index + 1] = row.page_begin + pages;
}

}  // namespace

MSGL_EXPORT int32_t msgl_table_write(msgl_device *device, int32_t *table, const int32_t *patches, const int32_t *values,
                                     int32_t count, int64_t row_stride) {
  return msgl::enqueue(device, [=](msgl_device &) {
    for (int64_t i = 0; i < count; ++i) {
      const int32_t *patch = patches + 4 * i;  // row, column, length, offset
      std::copy_n(values + patch[3], patch[2], table + patch[0] * row_stride + patch[1]);
    }
  });
}

MSGL_EXPORT int32_t msgl_expand(msgl_device *device, int32_t *ids, int32_t *positions, int32_t *cache_rows,
                                int32_t *sample_rows, int32_t *query_begin, int32_t *page_begin, int32_t *pages,
                                int32_t *last_page_length, const int32_t *sequence_rows, const int32_t *token_table,
                                const int32_t *page_table, int32_t sequences, int32_t tokens, int64_t token_stride,
                                int64_t page_stride, int32_t page_size) {
  if (page_size < 1) return msgl::fail("expand: page size %d", page_size);
  const Expansion out{ids, positions, cache_rows, sample_rows, query_begin, page_begin, pages, last_page_length};
  return msgl::enqueue(device, [=](msgl_device &) {
    out.query_begin[0] = out.page_begin[0] = 0;
    for (int32_t i = 0; i < sequences; ++i) {
      SequenceRow row;
      std::memcpy(&row, sequence_rows + int64_t{i} * 7, sizeof row);
      expand_row(out, i, row, token_table + row.slot * token_stride, page_table + row.slot * page_stride, page_size);
    }
  });
}
