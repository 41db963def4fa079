// Lanes of floats for the *.simd.cpp files. Everything is static: a copy shared by two instruction sets would crash.
#pragma once

#include <cstdint>
#include <cstring>

#include "minisgl.h"

#if defined(MSGL_ISA_avx512)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own _mm512_undefined_ps
#endif
#if defined(MSGL_ISA_avx2) || defined(MSGL_ISA_avx512)
#include <immintrin.h>
#endif

namespace msgl::MSGL_ISA {

#if defined(MSGL_ISA_avx512)
constexpr int kLanes = 16;
#elif defined(MSGL_ISA_avx2)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

static inline Floats load(const float *from) {
  Floats lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

static inline void store(float *to, Floats lanes) { std::memcpy(to, &lanes, sizeof lanes); }

/// The first `count` lanes, the others 0.
static inline Floats load_part(const float *from, int64_t count) {
  Floats lanes = {};
  std::memcpy(&lanes, from, count * sizeof(float));
  return lanes;
}

static inline void store_part(float *to, Floats lanes, int64_t count) {
  std::memcpy(to, &lanes, count * sizeof(float));
}

static inline Floats broadcast(float value) { return value - Floats{}; }

/// a * b + c, rounded once where the instruction set can.
static inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(MSGL_ISA_avx512)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(MSGL_ISA_avx2)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__FP_FAST_FMAF)
  Floats result;
  for (int i = 0; i < kLanes; ++i) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return result;
#else
  return a * b + c;
#endif
}

static inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

/// Adds the lanes as a tree: lane i to lane i + half, and so on.
static inline float sum(Floats lanes) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

static inline float largest(Floats lanes) {
  float result = lanes[0];
  for (int i = 1; i < kLanes; ++i) result = lanes[i] > result ? lanes[i] : result;
  return result;
}

/// e^x within about one unit in the last place; exactly 1 at 0, 0 below -87.3, finite above 88 (Cephes, expf).
static inline Floats exponential(Floats x) {
  const Floats lowest = broadcast(-87.3f), highest = broadcast(88.0f);
  const Floats clamped = x < lowest ? lowest : (x > highest ? highest : x);
  const Floats magic = broadcast(12582912.0f);  // adding it rounds to an integer, found in the low bits
  const Floats shifted = fma(clamped, broadcast(1.44269504088896341f), magic);
  const Floats n = shifted - magic;
  const Floats r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), clamped));
  Floats p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  const Floats y = fma(p, r * r, r) + broadcast(1.0f);
  const Floats scaled = (Floats)((Ints)y + (((Ints)shifted - (Ints)magic) << 23));
  return x < lowest ? Floats{} : scaled;
}

/// Values of a 16-bit type to floats.
template <int32_t kDtype>
static inline Floats widen(const uint16_t *from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  if constexpr (kDtype == MSGL_BF16) {
#if defined(MSGL_ISA_avx512)
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)halves), 16);
#elif defined(MSGL_ISA_avx2)
    return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)halves), 16);
#else
    return (Floats)(__builtin_convertvector(halves, Ints) << 16);
#endif
  } else {
#if defined(MSGL_ISA_avx512)
    return _mm512_cvtph_ps((__m256i)halves);
#elif defined(MSGL_ISA_avx2)
    return _mm256_cvtph_ps((__m128i)halves);
#else
    Floats lanes;
    for (int i = 0; i < kLanes; ++i) {
      _Float16 half;
      std::memcpy(&half, from + i, sizeof half);
      lanes[i] = static_cast<float>(half);
    }
    return lanes;
#endif
  }
}

/// Floats to a 16-bit type, rounded to nearest even.
template <int32_t kDtype>
static inline void narrow(uint16_t *to, Floats lanes) {
  Halves halves;
  if constexpr (kDtype == MSGL_BF16) {
    const Ints bits = (Ints)lanes;
    const Ints rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Ints quiet = (bits >> 16) | 0x40;
    halves = __builtin_convertvector(lanes != lanes ? quiet : rounded, Halves);
  } else {
#if defined(MSGL_ISA_avx512)
    halves = (Halves)_mm512_cvtps_ph(lanes, _MM_FROUND_TO_NEAREST_INT);
#elif defined(MSGL_ISA_avx2)
    halves = (Halves)_mm256_cvtps_ph(lanes, _MM_FROUND_TO_NEAREST_INT);
#else
    for (int i = 0; i < kLanes; ++i) {
      const _Float16 half = static_cast<_Float16>(lanes[i]);
      std::memcpy(reinterpret_cast<char *>(&halves) + 2 * i, &half, sizeof half);
    }
#endif
  }
  std::memcpy(to, &halves, sizeof halves);
}

}  // namespace msgl::MSGL_ISA
