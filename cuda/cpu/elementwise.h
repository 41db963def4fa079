// Kernels that work on one row: elementwise.simd.cpp.
#pragma once

#include <cstdint>

#include "isa.h"

namespace msgl {

/// Longest head that the kernels take.
constexpr int32_t kMaxHeadDim = 1024;

/// How rotary_heads treats the heads of one token.
struct RotaryHeads {
  const float *norm;    // [head_dim], or null
  const float *rotary;  // of the token's position: cos[rotary_dim / 2], sin[rotary_dim / 2]
  int32_t head_dim, rotary_dim;
  float epsilon;
};

// clang-format off
MSGL_EVERY_ISA(
/// Values of F32, F16 or BF16 to floats.
void to_floats(float *out, const void *in, int32_t dtype, int64_t count);
/// Floats to F32, F16 or BF16, rounded to nearest even.
void from_floats(void *out, int32_t dtype, const float *in, int64_t count);
void rms_norm(float *out, const float *x, const float *weight, int32_t size, float epsilon);
void add(float *sum, const float *x, int32_t size);
void silu_mul(float *out, const float *gate, const float *up, int32_t size);
/// Normalises and rotates `heads` heads and writes them in dtype.
void rotary_heads(void *out, int32_t dtype, const float *x, int32_t heads, const RotaryHeads &how);
)
// clang-format on

}  // namespace msgl
