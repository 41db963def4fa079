// Ops that treat each token by itself.
#include "elementwise.h"

#include <algorithm>

#include "device.h"

namespace msgl {
namespace {

/// Calls body(from, to) for ranges of rows, on as many threads as the work pays for. cost: about nanoseconds a row.
template <class F>
void for_rows(ThreadPool &pool, int64_t rows, int64_t cost, F &&body) {
  constexpr int64_t kWorthwhile = 10'000;
  const int64_t ranges = std::clamp<int64_t>(rows * cost / kWorthwhile, 1, std::min<int64_t>(rows, 4 * pool.size()));
  pool.run(ranges, [&](int64_t i) { body(rows * i / ranges, rows * (i + 1) / ranges); });
}

int32_t check_floats(const char *op, int32_t dtype) {
  return dtype == MSGL_F32 ? 0 : fail("%s: activations on the CPU are F32, not dtype %d", op, dtype);
}

}  // namespace
}  // namespace msgl

using namespace msgl;

MSGL_EXPORT int32_t msgl_rms_norm(msgl_device *device, void *out, const void *x, const void *weight, int32_t tokens,
                                  int32_t size, float epsilon, int32_t dtype) {
  if (const int32_t status = check_floats("rms_norm", dtype)) return status;
  return enqueue(device, [=](msgl_device &target) {
    const auto kernel = MSGL_PICK(rms_norm);
    for_rows(target.pool, tokens, size / 4, [&](int64_t from, int64_t to) {
      for (int64_t row = from; row < to; ++row) {
        kernel(static_cast<float *>(out) + row * size, static_cast<const float *>(x) + row * size,
               static_cast<const float *>(weight), size, epsilon);
      }
    });
  });
}

MSGL_EXPORT int32_t msgl_add_rms_norm(msgl_device *device, void *out, void *residual, const void *x, const void *weight,
                                      int32_t tokens, int32_t size, float epsilon, int32_t dtype) {
  if (const int32_t status = check_floats("add_rms_norm", dtype)) return status;
  return enqueue(device, [=](msgl_device &target) {
    const auto add = MSGL_PICK(add);
    const auto norm = MSGL_PICK(rms_norm);
    for_rows(target.pool, tokens, size / 2, [&](int64_t from, int64_t to) {
      for (int64_t row = from; row < to; ++row) {
        float *sum = static_cast<float *>(residual) + row * size;
        add(sum, static_cast<const float *>(x) + row * size, size);
        norm(static_cast<float *>(out) + row * size, sum, static_cast<const float *>(weight), size, epsilon);
      }
    });
  });
}

MSGL_EXPORT int32_t msgl_silu_mul(msgl_device *device, void *out, const void *gate_up, int32_t tokens, int32_t size,
                                  int32_t dtype) {
  if (const int32_t status = check_floats("silu_mul", dtype)) return status;
  return enqueue(device, [=](msgl_device &target) {
    const auto kernel = MSGL_PICK(silu_mul);
    for_rows(target.pool, tokens, size, [&](int64_t from, int64_t to) {
      for (int64_t row = from; row < to; ++row) {
        const float *gate = static_cast<const float *>(gate_up) + row * 2 * size;
        kernel(static_cast<float *>(out) + row * size, gate, gate + size, size);
      }
    });
  });
}

MSGL_EXPORT int32_t msgl_gather(msgl_device *device, void *out, const void *x, const int32_t *rows, int32_t count,
                                int32_t size, int32_t dtype) {
  if (const int32_t status = check_floats("gather", dtype)) return status;
  return enqueue(device, [=](msgl_device &) {
    const int64_t bytes = int64_t{size} * sizeof(float);
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(static_cast<char *>(out) + i * bytes, static_cast<const char *>(x) + rows[i] * bytes, bytes);
    }
  });
}

MSGL_EXPORT int32_t msgl_rotary_store(msgl_device *device, void *q, void *k_cache, void *v_cache, const void *qkv,
                                      const int32_t *positions, const int32_t *cache_rows, const float *rotary,
                                      const void *q_norm, const void *k_norm, int32_t tokens, int32_t heads,
                                      int32_t kv_heads, int32_t head_dim, int32_t rotary_dim, float epsilon,
                                      int32_t dtype, int32_t cache_dtype) {
  if (const int32_t status = check_floats("rotary_store", dtype)) return status;
  if (cache_dtype < MSGL_F32 || cache_dtype > MSGL_BF16) return fail("rotary_store: a cache of dtype %d", cache_dtype);
  if (head_dim > kMaxHeadDim || rotary_dim > head_dim || rotary_dim % 2 != 0) {
    return fail("rotary_store: head_dim %d, rotary_dim %d", head_dim, rotary_dim);
  }
  return enqueue(device, [=](msgl_device &target) {
    const auto rotate = MSGL_PICK(rotary_heads);
    const auto copy = MSGL_PICK(from_floats);
    const int64_t q_size = int64_t{heads} * head_dim, kv_size = int64_t{kv_heads} * head_dim;
    const int64_t row_bytes = kv_size * (cache_dtype == MSGL_F32 ? 4 : 2);
    for_rows(target.pool, tokens, (q_size + 2 * kv_size) / 2, [&](int64_t from, int64_t to) {
      for (int64_t token = from; token < to; ++token) {
        const float *x = static_cast<const float *>(qkv) + token * (q_size + 2 * kv_size);
        RotaryHeads how{static_cast<const float *>(q_norm), rotary + int64_t{positions[token]} * rotary_dim, head_dim,
                        rotary_dim, epsilon};
        rotate(static_cast<float *>(q) + token * q_size, MSGL_F32, x, heads, how);
        const int64_t at = cache_rows[token] * row_bytes;
        how.norm = static_cast<const float *>(k_norm);
        rotate(static_cast<char *>(k_cache) + at, cache_dtype, x + q_size, kv_heads, how);
        copy(static_cast<char *>(v_cache) + at, cache_dtype, x + q_size + kv_size, kv_size);
      }
    });
  });
}
