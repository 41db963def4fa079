/* weight.cu: weights and the loads that fill them; the work itself is in loader.cu and convert.cu. */
#include "weight.h"

#include "convert.h"
#include "loader.h"

using namespace minisgl;

struct msgl_file {
  explicit msgl_file(const char *path) : source(path) {}
  File source;
};

int32_t msgl_file_open(msgl_file **file, const char *path) {
  return guard([&] { *file = new msgl_file(path); });
}

int32_t msgl_file_close(msgl_file *file) {
  return guard([&] { delete file; });
}

int32_t msgl_weight_create(msgl_device *device, msgl_weight **weight, const int64_t *part_rows,
                           const int32_t *part_dtypes, int32_t parts, int64_t k) {
  return on_device(device, [&] {
    int64_t n = 0;
    for (int32_t i = 0; i < parts; i++) {
      if (part_dtypes[i] != MSGL_BF16 && part_dtypes[i] != MSGL_F16)
        fail("weights are kept in bfloat16 or float16 on CUDA, not in dtype %d", part_dtypes[i]);
      if (part_dtypes[i] != part_dtypes[0]) fail("the parts of a weight must have one dtype on CUDA");
      n += part_rows[i];
    }
    if (parts < 1 || n < 1 || k < 1) fail("a weight needs rows and columns");
    *weight = device->adopt(std::make_unique<msgl_weight>(n, k, part_dtypes[0]));
  });
}

int32_t msgl_weight_destroy(msgl_device *device, msgl_weight *weight) {
  return on_device(device, [&] { device->release(weight); });
}

int32_t msgl_weight_bytes(const msgl_weight *weight, int64_t *bytes) {
  return guard([&] { *bytes = weight->bytes(); });
}

int32_t msgl_weight_load(msgl_device *device, msgl_weight *weight, msgl_file *file, int64_t row, int64_t rows,
                         int64_t offset, int64_t row_bytes, int32_t dtype) {
  return on_device(device, [&] {
    if (row < 0 || rows < 0 || row + rows > weight->n)
      fail("rows %lld .. %lld are outside a weight of %lld rows", static_cast<long long>(row),
           static_cast<long long>(row + rows), static_cast<long long>(weight->n));
    if (rows > 0) file->source.require(offset, rows, row_bytes, packed_bytes(dtype, weight->k));
    char *destination = weight->memory.get<char>() + row * weight->k * dtype_bytes(weight->dtype);
    device->loader->add(
        {&file->source, offset, row_bytes, rows, weight->k, dtype, destination, weight->dtype});
  });
}

int32_t msgl_weight_random(msgl_device *device, msgl_weight *weight, uint64_t seed, float scale) {
  return on_device(device, [&] {
    enqueue_random(device, weight->memory.get(), weight->n * weight->k, weight->dtype, seed, scale);
  });
}

int32_t msgl_load(msgl_device *device, void *destination, int32_t destination_dtype, msgl_file *file, int64_t offset,
                  int64_t count, int32_t dtype) {
  return on_device(device, [&] {
    // Consecutive values are loaded as rows of a size that the loader can cut between.
    constexpr int64_t row = 1 << 16;
    const int64_t rows = count / row, rest = count % row, row_bytes = packed_bytes(dtype, row);
    char *tail = static_cast<char *>(destination) + rows * row * dtype_bytes(destination_dtype);
    if (rows > 0)
      device->loader->add({&file->source, offset, row_bytes, rows, row, dtype, destination, destination_dtype});
    if (rest > 0)
      device->loader->add({&file->source, offset + rows * row_bytes, packed_bytes(dtype, rest), 1, rest, dtype, tail,
                           destination_dtype});
  });
}

int32_t msgl_load_wait(msgl_device *device, int64_t *bytes, int32_t *done, int32_t timeout_ms) {
  return on_device(device, [&] { *done = device->loader->wait(timeout_ms, bytes); });
}
