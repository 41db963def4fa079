// Products with what stands around them, as the ops that they consist of: so they give the same bits.
#include "device.h"
#include "elementwise.h"
#include "weight.h"

using namespace msgl;

MSGL_EXPORT int32_t msgl_linear_add(msgl_device *device, void *out, void *scratch, const void *x,
                                    const msgl_weight *weight, const void *bias, int32_t tokens, int32_t dtype) {
  if (const int32_t status = msgl_linear(device, scratch, x, weight, bias, tokens, dtype, dtype)) return status;
  const int64_t n = weight->n;
  return enqueue(device, [=](msgl_device &target) {
    const auto add = MSGL_PICK(add);
    target.pool.run(tokens, [&](int64_t row) {
      add(static_cast<float *>(out) + row * n, static_cast<const float *>(scratch) + row * n, n);
    });
  });
}

MSGL_EXPORT int32_t msgl_norm_linear(msgl_device *device, void *out, void *normed, const void *x, const void *norm,
                                     const msgl_weight *weight, const void *bias, int32_t tokens, float epsilon,
                                     int32_t dtype, int32_t out_dtype) {
  const auto k = static_cast<int32_t>(weight->k);
  if (const int32_t status = msgl_rms_norm(device, normed, x, norm, tokens, k, epsilon, dtype)) return status;
  return msgl_linear(device, out, normed, weight, bias, tokens, dtype, out_dtype);
}

MSGL_EXPORT int32_t msgl_norm_gated_linear(msgl_device *device, void *out, void *gate_up, void *normed, const void *x,
                                           const void *norm, const msgl_weight *weight, int32_t tokens, float epsilon,
                                           int32_t dtype) {
  if (const int32_t status = msgl_norm_linear(device, gate_up, normed, x, norm, weight, nullptr, tokens, epsilon, dtype,
                                              dtype)) {
    return status;
  }
  return msgl_silu_mul(device, out, gate_up, tokens, static_cast<int32_t>(weight->n / 2), dtype);
}
