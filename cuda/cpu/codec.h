// Decoding of packed weights (weight.h) to floats in registers, for the *.simd.cpp files.
//
// A run is what shares scales. It is read in steps: raw() loads what holds the next kStep columns of kLanes rows, and
// value() makes column j of them. Where a value of few bits lies high in its dword it is converted as it lies there,
// and the scale is made so much smaller: both are exact, and a shift is saved.
#pragma once

#if defined(MSGL_ISA_avx512)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own _mm512_undefined_ps
#endif

#include <type_traits>
#include <utility>

#include "vector.h"

namespace msgl::MSGL_ISA {

#define MSGL_INLINE __attribute__((always_inline))

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

/// body(Constant<0>()) .. body(Constant<kCount - 1>()): what a loop is too late for, if arrays are to become registers.
template <int kCount, class F>
MSGL_INLINE static inline void unroll(const F &body) {
  [&]<int... i>(std::integer_sequence<int, i...>) MSGL_INLINE {
    (body(Constant<i>()), ...);
  }(std::make_integer_sequence<int, kCount>());
}

constexpr int kPanelRows = 16;
constexpr int kVectors = kPanelRows / kLanes;  // registers for a column of a panel

static inline Ints load_ints(const uint8_t *from) {
  Ints lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

/// The scale of a row's block, or whatever f16 stands at place `index` of the block's heads.
static inline Floats head(const uint8_t *block, int index, int vector) {
  return widen<MSGL_F16>(reinterpret_cast<const uint16_t *>(block) + index * kPanelRows + vector * kLanes);
}

static inline Ints word(const uint8_t *words, int64_t index, int vector) {
  return load_ints(words + (index * kPanelRows + vector * kLanes) * 4);
}

static inline Floats to_floats(Ints lanes) { return __builtin_convertvector(lanes, Floats); }

template <int kDtype>
struct Codec;

struct FloatCodec {
  static constexpr int kRun = 16;
  struct Scales {};
  static Scales scales(const uint8_t *, int64_t, int) { return {}; }
};

template <>
struct Codec<MSGL_F32> : FloatCodec {
  static constexpr int kStep = 1;
  using Raw = Floats;
  static inline Raw raw(const uint8_t *panel, int64_t run, int step, int vector) {
    return load(reinterpret_cast<const float *>(panel) + (run * kRun + step) * kPanelRows + vector * kLanes);
  }
  static inline Floats value(Raw raw, const Scales &, int) { return raw; }
};

template <>
struct Codec<MSGL_F16> : FloatCodec {
  static constexpr int kStep = 1;
  using Raw = Floats;
  static inline Raw raw(const uint8_t *panel, int64_t run, int step, int vector) {
    const auto *halves = reinterpret_cast<const uint16_t *>(panel);
    return widen<MSGL_F16>(halves + (run * kRun + step) * kPanelRows + vector * kLanes);
  }
  static inline Floats value(Raw raw, const Scales &, int) { return raw; }
};

template <>
struct Codec<MSGL_BF16> : FloatCodec {
  static constexpr int kStep = 2;
  using Raw = Ints;
  static inline Raw raw(const uint8_t *panel, int64_t run, int step, int vector) {
    return word(panel, run * kRun / 2 + step, vector);
  }
  static inline Floats value(Raw raw, const Scales &, int j) {
    return (Floats)(j == 0 ? raw << 16 : raw & static_cast<int32_t>(0xffff0000));
  }
};

/// Values of at most 7 bits, one in each byte of a dword: step * q + offset.
struct ByteScales {
  Floats step[4], offset;
  static inline ByteScales make(Floats step, Floats offset) {
    return {{step, step * 0x1p-8f, step * 0x1p-16f, step * 0x1p-24f}, offset};
  }
  template <int kBits>
  inline Floats value(Ints raw, int j) const {
    return fma(to_floats(raw & (((1 << kBits) - 1) << 8 * j)), step[j], offset);
  }
};

/// Makes the compiler take the scales from memory, where it would rather spill sums.
static inline void keep_in_memory(ByteScales &scales) { asm volatile("" : "+m"(scales.step)); }
template <class T>
static inline void keep_in_memory(T &) {}

/// The nibbles of 32 values in 4 dwords: low ones first, then high ones.
struct NibbleCodec {
  static constexpr int kRun = 32, kStep = 4;
  using Scales = ByteScales;
  using Raw = Ints;
  static inline Floats value(Raw raw, const Scales &scales, int j) { return scales.value<4>(raw, j); }
};

template <>
struct Codec<MSGL_Q4_0> : NibbleCodec {
  static constexpr int64_t kBytes = 18 * kPanelRows;
  static inline Scales scales(const uint8_t *panel, int64_t run, int vector) {
    const Floats d = head(panel + run * kBytes, 0, vector);
    return ByteScales::make(d, d * -8.0f);
  }
  static inline Raw raw(const uint8_t *panel, int64_t run, int step, int vector) {
    return word(panel + run * kBytes + 2 * kPanelRows, step & 3, vector) >> (step < 4 ? 0 : 4);
  }
};

template <>
struct Codec<MSGL_Q4_1> : NibbleCodec {
  static constexpr int64_t kBytes = 20 * kPanelRows;
  static inline Scales scales(const uint8_t *panel, int64_t run, int vector) {
    const uint8_t *block = panel + run * kBytes;
    return ByteScales::make(head(block, 0, vector), head(block, 1, vector));
  }
  static inline Raw raw(const uint8_t *panel, int64_t run, int step, int vector) {
    return word(panel + run * kBytes + 4 * kPanelRows, step & 3, vector) >> (step < 4 ? 0 : 4);
  }
};

template <>
struct Codec<MSGL_Q4_K> : NibbleCodec {
  static constexpr int64_t kBytes = 144 * kPanelRows;
  static inline Scales scales(const uint8_t *panel, int64_t run, int vector) {
    const uint8_t *block = panel + (run >> 3) * kBytes, *words = block + 4 * kPanelRows;
    const int shift = static_cast<int>(run & 3) * 8;
    const Ints first = word(words, 0, vector) >> shift, second = word(words, 1, vector) >> shift;
    Ints scale = first & 63, minimum = second & 63;
    if ((run & 4) != 0) {
      const Ints third = word(words, 2, vector) >> shift;
      scale = (third & 15) | (first >> 2 & 48);
      minimum = (third >> 4 & 15) | (second >> 2 & 48);
    }
    const Floats offset = head(block, 1, vector) * to_floats(minimum);
    return ByteScales::make(head(block, 0, vector) * to_floats(scale), -offset);
  }
  static inline Raw raw(const uint8_t *panel, int64_t run, int step, int vector) {
    const uint8_t *nibbles = panel + (run >> 3) * kBytes + 16 * kPanelRows;
    return word(nibbles, (run >> 1 & 3) * 8 + step, vector) >> static_cast<int>(run & 1) * 4;
  }
};

template <>
struct Codec<MSGL_Q8_0> {
  static constexpr int kRun = 32, kStep = 4;
  static constexpr int64_t kBytes = 34 * kPanelRows;
  using Scales = Floats;
  using Raw = Ints;
  static inline Scales scales(const uint8_t *panel, int64_t run, int vector) {
    return head(panel + run * kBytes, 0, vector) * 0x1p-24f;
  }
  static inline Raw raw(const uint8_t *panel, int64_t run, int step, int vector) {
    return word(panel + run * kBytes + 2 * kPanelRows, step, vector);
  }
  static inline Floats value(Raw raw, const Scales &scales, int j) {
    return to_floats((raw << (24 - 8 * j)) & static_cast<int32_t>(0xff000000)) * scales;
  }
};

template <>
struct Codec<MSGL_Q6_K> {
  static constexpr int kRun = 16, kStep = 4;
  static constexpr int64_t kBytes = 210 * kPanelRows;
  using Scales = ByteScales;
  using Raw = Ints;
  static inline Scales scales(const uint8_t *panel, int64_t run, int vector) {
    const uint8_t *block = panel + (run >> 4) * kBytes, *words = block + 2 * kPanelRows;
    const Ints scale = word(words, 48 + (run >> 2 & 3), vector) << static_cast<int>(24 - 8 * (run & 3)) >> 24;
    const Floats step = head(block, 0, vector) * to_floats(scale);
    return ByteScales::make(step, step * -32.0f);
  }
  static inline Raw raw(const uint8_t *panel, int64_t run, int step, int vector) {
    const uint8_t *words = panel + (run >> 4) * kBytes + 2 * kPanelRows;
    const int half = static_cast<int>(run >> 3 & 1), quarter = static_cast<int>(run >> 1 & 3);
    const int at = static_cast<int>(run & 1) * 4 + step;
    const Ints low = word(words, half * 16 + (quarter & 1) * 8 + at, vector) >> (quarter >> 1) * 4;
    const Ints high = word(words, 32 + half * 8 + at, vector) >> quarter * 2;
    return (low & 0x0f0f0f0f) | ((high & 0x03030303) << 4);
  }
  static inline Floats value(Raw raw, const Scales &scales, int j) { return scales.value<6>(raw, j); }
};

}  // namespace msgl::MSGL_ISA
