/* weight.h: a matrix [n, k] on the device, row-major in one dtype. */
#ifndef MINISGL_WEIGHT_H
#define MINISGL_WEIGHT_H

#include "device.h"

struct msgl_weight : minisgl::Owned {
  msgl_weight(int64_t n, int64_t k, int32_t dtype)
      : n(n), k(k), dtype(dtype), memory(static_cast<size_t>(n * k * minisgl::dtype_bytes(dtype))) {}

  int64_t bytes() const { return n * k * minisgl::dtype_bytes(dtype); }

  int64_t n, k;
  int32_t dtype;
  minisgl::DeviceBuffer memory;
};

namespace minisgl {

/* msgl_random without the boundary; memory.cu. */
void enqueue_random(msgl_device *device, void *destination, int64_t count, int32_t dtype, uint64_t seed, float scale);

}  // namespace minisgl

#endif
