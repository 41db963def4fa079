#include "elementwise.h"

#include "vector.h"

namespace msgl::MSGL_ISA {

template <int32_t kDtype>
static void widen_all(float *out, const uint16_t *in, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, widen<kDtype>(in + i));
  if (i == count) return;
  uint16_t tail[kLanes] = {};
  std::memcpy(tail, in + i, (count - i) * sizeof *tail);
  store_part(out + i, widen<kDtype>(tail), count - i);
}

template <int32_t kDtype>
static void narrow_all(uint16_t *out, const float *in, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) narrow<kDtype>(out + i, load(in + i));
  if (i == count) return;
  uint16_t tail[kLanes];
  narrow<kDtype>(tail, load_part(in + i, count - i));
  std::memcpy(out + i, tail, (count - i) * sizeof *tail);
}

void to_floats(float *out, const void *in, int32_t dtype, int64_t count) {
  if (dtype == MSGL_F32) {
    std::memcpy(out, in, count * sizeof *out);
  } else if (dtype == MSGL_F16) {
    widen_all<MSGL_F16>(out, static_cast<const uint16_t *>(in), count);
  } else {
    widen_all<MSGL_BF16>(out, static_cast<const uint16_t *>(in), count);
  }
}

void from_floats(void *out, int32_t dtype, const float *in, int64_t count) {
  if (dtype == MSGL_F32) {
    std::memcpy(out, in, count * sizeof *in);
  } else if (dtype == MSGL_F16) {
    narrow_all<MSGL_F16>(static_cast<uint16_t *>(out), in, count);
  } else {
    narrow_all<MSGL_BF16>(static_cast<uint16_t *>(out), in, count);
  }
}

/// 1 / sqrt(mean(x^2) + epsilon), summed in an order that depends on size alone.
static float inverse_rms(const float *x, int32_t size, float epsilon) {
  Floats sums[4] = {};
  int32_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const Floats v = load(x + i + j * kLanes);
      sums[j] = fma(v, v, sums[j]);
    }
  }
  for (; i < size; i += kLanes) {
    const Floats v = i + kLanes <= size ? load(x + i) : load_part(x + i, size - i);
    sums[0] = fma(v, v, sums[0]);
  }
  const float mean = sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<float>(size);
  return 1.0f / __builtin_sqrtf(mean + epsilon);
}

void rms_norm(float *out, const float *x, const float *weight, int32_t size, float epsilon) {
  const float factor = inverse_rms(x, size, epsilon);
  for (int32_t i = 0; i < size; ++i) out[i] = x[i] * factor * weight[i];
}

void add(float *__restrict sum, const float *__restrict x, int32_t size) {
  for (int32_t i = 0; i < size; ++i) sum[i] += x[i];
}

void silu_mul(float *out, const float *gate, const float *up, int32_t size) {
  const Floats one = broadcast(1.0f);
  for (int32_t i = 0; i < size; i += kLanes) {
    const int32_t count = size - i < kLanes ? size - i : kLanes;
    const Floats g = count == kLanes ? load(gate + i) : load_part(gate + i, count);
    const Floats u = count == kLanes ? load(up + i) : load_part(up + i, count);
    const Floats result = g / (one + exponential(-g)) * u;
    if (count == kLanes) {
      store(out + i, result);
    } else {
      store_part(out + i, result, count);
    }
  }
}

void rotary_heads(void *out, int32_t dtype, const float *x, int32_t heads, const RotaryHeads &how) {
  const int32_t half = how.rotary_dim / 2;
  const float *cosine = how.rotary, *sine = how.rotary + half;
  const int32_t element = dtype == MSGL_F32 ? 4 : 2;
  alignas(64) float head[kMaxHeadDim];
  for (int32_t h = 0; h < heads; ++h, x += how.head_dim) {
    if (how.norm != nullptr) {
      rms_norm(head, x, how.norm, how.head_dim, how.epsilon);
    } else {
      std::memcpy(head, x, how.head_dim * sizeof *head);
    }
    for (int32_t i = 0; i < half; ++i) {
      const float a = head[i], b = head[i + half];
      head[i] = a * cosine[i] - b * sine[i];
      head[i + half] = b * cosine[i] + a * sine[i];
    }
    from_floats(static_cast<char *>(out) + int64_t{h} * how.head_dim * element, dtype, head, how.head_dim);
  }
}

}  // namespace msgl::MSGL_ISA
