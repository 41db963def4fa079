// Making, loading and filling weights.
#include "weight.h"

#include <algorithm>
#include <cstdlib>

#include "../philox.h"
#include "elementwise.h"

namespace msgl {

namespace {

constexpr int64_t kChunk = 256;  // values converted at a time, a multiple of every block

// Writes `count` values that already have the part's float type into columns from `column` (even) on of a lane.
void scatter(const WeightPart &part, int64_t column, int64_t count, const uint8_t *source, uint8_t *panel, int lane) {
  if (part.dtype == MSGL_F32) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(panel + ((column + i) * kPanel + lane) * 4, source + i * 4, 4);
  } else if (part.dtype == MSGL_F16) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(panel + ((column + i) * kPanel + lane) * 2, source + i * 2, 2);
  } else {
    uint8_t *pairs = panel + (column / 2 * kPanel + lane) * 4;
    for (int64_t i = 0; i + 1 < count; i += 2) std::memcpy(pairs + i / 2 * kPanel * 4, source + i * 2, 4);
    if (count % 2 != 0) {
      const uint32_t last = static_cast<uint32_t>(source[2 * count - 2] | source[2 * count - 1] << 8);
      std::memcpy(pairs + count / 2 * kPanel * 4, &last, 4);
    }
  }
}

// One block between its form in a file and its lane; `packed` is the block's place in the panel.
template <bool kPack>
void move_block(const BlockFormat &format, uint8_t *packed, int lane, uint8_t *block) {
  const auto move = [](uint8_t *to, uint8_t *from, int bytes) {
    kPack ? std::memcpy(to, from, bytes) : std::memcpy(from, to, bytes);
  };
  uint8_t *halves = format.halves_first ? block : block + 4 * format.words;
  uint8_t *words = format.halves_first ? block + 2 * format.halves : block;
  for (int i = 0; i < format.halves; ++i) move(packed + (i * kPanel + lane) * 2, halves + 2 * i, 2);
  packed += format.halves * kPanel * 2;
  for (int i = 0; i < format.words; ++i) move(packed + (i * kPanel + lane) * 4, words + 4 * i, 4);
}

uint8_t *panel_of(const WeightPart &part, int64_t row) { return part.data + row / kPanel * part.panel_bytes; }

}  // namespace

int64_t panel_bytes(int dtype, int64_t k) {
  return kPanel * file_bytes(dtype, dtype == MSGL_BF16 ? (k + 1) / 2 * 2 : k);
}

void pack_row(const WeightPart &part, int64_t k, int64_t row, const uint8_t *source, int dtype) {
  const int lane = static_cast<int>(row % kPanel);
  uint8_t *panel = panel_of(part, row);
  if (const BlockFormat *format = block_format(part.dtype)) {
    for (int64_t i = 0; i < k / format->values; ++i) {
      uint8_t *block = const_cast<uint8_t *>(source) + i * format->bytes();
      move_block<true>(*format, panel + i * format->bytes() * kPanel, lane, block);
    }
  } else if (dtype == part.dtype) {
    scatter(part, 0, k, source, panel, lane);
  } else {
    float values[kChunk];
    uint8_t encoded[kChunk * 4];
    for (int64_t column = 0; column < k; column += kChunk) {
      const int64_t count = std::min(kChunk, k - column);
      decode_values(dtype, source + file_bytes(dtype, column), count, values);
      MSGL_PICK(from_floats)(encoded, part.dtype, values, count);
      scatter(part, column, count, encoded, panel, lane);
    }
  }
}

void unpack_row(const WeightPart &part, int64_t k, int64_t row, float *values) {
  const int lane = static_cast<int>(row % kPanel);
  uint8_t *panel = panel_of(part, row);
  if (const BlockFormat *format = block_format(part.dtype)) {
    uint8_t block[256];
    for (int64_t i = 0; i < k / format->values; ++i) {
      move_block<false>(*format, panel + i * format->bytes() * kPanel, lane, block);
      decode_block(part.dtype, block, values + i * format->values);
    }
  } else if (part.dtype == MSGL_F32) {
    for (int64_t i = 0; i < k; ++i) std::memcpy(values + i, panel + (i * kPanel + lane) * 4, 4);
  } else {
    const auto *bits = reinterpret_cast<const uint16_t *>(panel);
    if (part.dtype == MSGL_F16) {
      for (int64_t i = 0; i < k; ++i) values[i] = from_f16(bits[i * kPanel + lane]);
    } else {
      for (int64_t i = 0; i < k; ++i) values[i] = from_bf16(bits[(i / 2 * kPanel + lane) * 2 + i % 2]);
    }
  }
}

namespace {

// A valid block of values of about -scale .. scale, drawn at `index`.
void random_block(int dtype, uint64_t seed, uint64_t index, float scale, uint8_t *block) {
  const BlockFormat &format = *block_format(dtype);
  for (int i = 0; i < format.words; i += 4) {
    const minisgl::Philox words = minisgl::philox({{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                                                    static_cast<uint32_t>(i), 2}},
                                                  static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    uint8_t *to = block + (format.halves_first ? 2 * format.halves : 0) + 4 * i;
    std::memcpy(to, words.word, 4 * std::min(4, format.words - i));
  }
  float halves[2] = {scale / 127, 0};
  if (dtype == MSGL_Q4_0) halves[0] = scale / 8;
  if (dtype == MSGL_Q4_1) halves[0] = scale / 7.5f, halves[1] = -scale;
  if (dtype == MSGL_Q4_K) halves[0] = scale / (7.5f * 63), halves[1] = scale / 63;
  if (dtype == MSGL_Q6_K) halves[0] = scale / (32 * 128);
  uint16_t bits[2];
  MSGL_PICK(from_floats)(bits, MSGL_F16, halves, 2);
  std::memcpy(block + (format.halves_first ? 0 : 4 * format.words), bits, 2 * format.halves);
}

// Packs row `row` of the part, drawn at its place in the weight.
void random_row(const WeightPart &part, int64_t k, int64_t row, uint64_t seed, float scale) {
  const uint64_t first = static_cast<uint64_t>(part.row + row) * k;
  if (const BlockFormat *format = block_format(part.dtype)) {
    std::vector<uint8_t> blocks(file_bytes(part.dtype, k));
    for (int64_t i = 0; i < k / format->values; ++i) {
      random_block(part.dtype, seed, first / format->values + i, scale, blocks.data() + i * format->bytes());
    }
    pack_row(part, k, row, blocks.data(), part.dtype);
    return;
  }
  std::vector<float> values(k);
  for (int64_t i = 0; i < k; ++i) values[i] = scale * minisgl::random_value(seed, first + i);
  pack_row(part, k, row, reinterpret_cast<const uint8_t *>(values.data()), MSGL_F32);
}

constexpr int64_t kJobBytes = 512 << 10;  // of the file that a loader takes at a time: what stays in its cache

constexpr int64_t kLarge = 32 << 20;      // bytes from which on it pays to ask how much memory is free

long long number(int64_t value) { return value; }  // for printf

/// Whether these rows are in the weight and can be made of values of `dtype`.
int32_t check_rows(const msgl_weight &weight, int64_t row, int64_t rows, int32_t dtype) {
  const BlockFormat *format = block_format(dtype);
  if (format == nullptr && !is_float(dtype)) return fail("a weight cannot be loaded from dtype %d", dtype);
  if (format != nullptr && weight.k % format->values != 0) {
    return fail("rows of %lld values are not whole blocks of %d", number(weight.k), format->values);
  }
  if (row < 0 || rows < 0 || rows > weight.n - row) {
    return fail("%lld rows from %lld on are not in a weight of %lld", number(rows), number(row), number(weight.n));
  }
  for (const WeightPart &part : weight.parts) {
    const bool touched = row < part.row + part.rows && part.row < row + rows;
    if (touched && dtype != part.dtype && !is_float(part.dtype)) {
      return fail("dtype %d cannot be encoded to blocks", dtype);
    }
  }
  return 0;
}

}  // namespace

}  // namespace msgl

using namespace msgl;

msgl_weight::~msgl_weight() { std::free(data); }

MSGL_EXPORT int32_t msgl_weight_create(msgl_device *device, msgl_weight **weight, const int64_t *part_rows,
                                       const int32_t *part_dtypes, int32_t parts, int64_t k) {
  if (parts < 1 || k < 1) return fail("a weight of %d parts and %lld columns", parts, number(k));
  return guard([&]() -> int32_t {
    auto made = std::make_unique<msgl_weight>(*device);
    made->k = k;
    for (int32_t i = 0; i < parts; ++i) {
      const int32_t dtype = part_dtypes[i];
      const BlockFormat *format = block_format(dtype);
      if (format == nullptr && !is_float(dtype)) return fail("a weight cannot be kept in dtype %d", dtype);
      if (format != nullptr && k % format->values != 0) {
        return fail("%lld columns are not whole blocks of %d", number(k), format->values);
      }
      if (part_rows[i] < 0) return fail("a part of %lld rows", number(part_rows[i]));
      made->parts.push_back({made->n, part_rows[i], made->panels, panel_bytes(dtype, k), dtype, nullptr});
      const WeightPart &part = made->parts.back();
      made->n += part.rows;
      made->panels += part.panels();
      made->bytes += part.panels() * part.panel_bytes;
    }
    // Pages are only taken when they are written: malloc alone would promise what is not there.
    if (made->bytes > kLarge && made->bytes > free_memory()) {
      return fail("a weight of %lld bytes: %lld are free", number(made->bytes), number(free_memory()));
    }
    made->data = static_cast<uint8_t *>(allocate(made->bytes));
    uint8_t *data = made->data;
    for (WeightPart &part : made->parts) {
      part.data = data;
      data += part.panels() * part.panel_bytes;
      if (part.rows % kPanel != 0) std::memset(data - part.panel_bytes, 0, part.panel_bytes);
    }
    *weight = device->adopt(std::move(made));
    return 0;
  });
}

MSGL_EXPORT int32_t msgl_weight_destroy(msgl_device *device, msgl_weight *weight) {
  device->release(weight);
  return 0;
}

MSGL_EXPORT int32_t msgl_weight_bytes(const msgl_weight *weight, int64_t *bytes) {
  *bytes = weight->bytes;
  return 0;
}

MSGL_EXPORT int32_t msgl_weight_load(msgl_device *device, msgl_weight *weight, msgl_file *file, int64_t row,
                                     int64_t rows, int64_t offset, int64_t row_bytes, int32_t dtype) {
  if (check_rows(*weight, row, rows, dtype) != 0) return 1;
  if (rows == 0) return 0;
  const int64_t k = weight->k, needed = file_bytes(dtype, k);
  int64_t end;
  if (row_bytes < needed) return fail("rows of %lld bytes: %lld are needed", number(row_bytes), number(needed));
  if (offset < 0 || __builtin_mul_overflow(rows - 1, row_bytes, &end) || __builtin_add_overflow(end, needed, &end) ||
      __builtin_add_overflow(end, offset, &end) || end > file->bytes) {
    return fail("%s ends at byte %lld, a weight at byte %lld needs %lld rows of %lld bytes", file->path.c_str(),
                number(file->bytes), number(offset), number(rows), number(row_bytes));
  }
  return guard([&] {
    const int64_t at_once = std::max<int64_t>(1, kJobBytes / row_bytes / kPanel) * kPanel;
    for (const WeightPart &part : weight->parts) {
      const int64_t last = std::min(row + rows, part.row + part.rows);
      for (int64_t first = std::max(row, part.row); first < last; first += at_once) {
        const int64_t count = std::min(at_once, last - first);
        const int64_t from = offset + (first - row) * row_bytes, bytes = (count - 1) * row_bytes + needed;
        const auto job = [=, &part] {
          static thread_local std::vector<uint8_t> buffer;
          buffer.resize(bytes);
          file->read(buffer.data(), from, bytes);
          const uint8_t *source = buffer.data();
          for (int64_t i = first; i < first + count; ++i, source += row_bytes) {
            pack_row(part, k, i - part.row, source, dtype);
          }
        };
        enqueue_load(device, job, count * needed);
      }
    }
    return 0;
  });
}

MSGL_EXPORT int32_t msgl_weight_random(msgl_device *device, msgl_weight *weight, uint64_t seed, float scale) {
  return enqueue(device, [=](msgl_device &target) {
    for (const WeightPart &part : weight->parts) {
      target.pool.run(part.panels(), [&](int64_t panel) {
        const int64_t end = std::min(part.rows, (panel + 1) * kPanel);
        for (int64_t row = panel * kPanel; row < end; ++row) random_row(part, weight->k, row, seed, scale);
      });
    }
  });
}
