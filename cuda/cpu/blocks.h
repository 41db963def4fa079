// GGUF blocks, their layout and their values, and the types that a file may have.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "minisgl.h"

namespace msgl {

/// How a block of `values` consecutive values of a row lies in a file: little-endian dwords and f16 scales.
struct BlockFormat {
  int values;
  int words;          // dwords: quantised values and packed scales
  int halves;         // f16 scales
  bool halves_first;  // or after the dwords
  int bytes() const { return 4 * words + 2 * halves; }
};

/// Null for types that are not blocks.
const BlockFormat *block_format(int dtype);

/// Whether `dtype` is one of the float types a weight may have: F32, F16, BF16.
inline bool is_float(int dtype) { return dtype == MSGL_F32 || dtype == MSGL_F16 || dtype == MSGL_BF16; }

/// Bytes of `count` consecutive values of `dtype` in a file (blocks: whole ones).
int64_t file_bytes(int dtype, int64_t count);

/// The F32 values of one block, each the exact result of the format's formula, rounded once.
void decode_block(int dtype, const uint8_t *block, float *values);

/// `count` values of `dtype` (any; blocks: whole ones) to F32.
void decode_values(int dtype, const void *source, int64_t count, float *values);

inline float from_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline float from_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, rest = bits & 0x7fff;
  // Scaling by 2^112 gives exponents their new bias and normalises what was subnormal.
  uint32_t value = std::bit_cast<uint32_t>(std::bit_cast<float>(rest << 13) * 0x1p112f);
  if (rest >= 0x7c00) value |= 0x7f800000;
  return std::bit_cast<float>(sign | value);
}

}  // namespace msgl
