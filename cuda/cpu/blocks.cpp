#include "blocks.h"

#include "elementwise.h"

namespace msgl {

namespace {

float f16_at(const uint8_t *at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return from_f16(bits);
}

// f16 d, 32 signed bytes.
void decode_q8_0(const uint8_t *block, float *values) {
  const float d = f16_at(block);
  for (int i = 0; i < 32; ++i) values[i] = d * static_cast<int8_t>(block[2 + i]);
}

// f16 d, 16 bytes: value i in the low nibble of byte i, value i + 16 in the high one. d * (q - 8), written as the
// packed kernels have it, so that a zero has the same sign.
void decode_q4_0(const uint8_t *block, float *values) {
  const float d = f16_at(block), m = -8 * d;
  for (int i = 0; i < 16; ++i) {
    values[i] = d * (block[2 + i] & 15) + m;
    values[i + 16] = d * (block[2 + i] >> 4) + m;
  }
}

// f16 d, f16 m, nibbles as Q4_0. d * q is exact, so that only the sum rounds.
void decode_q4_1(const uint8_t *block, float *values) {
  const float d = f16_at(block), m = f16_at(block + 2);
  for (int i = 0; i < 16; ++i) {
    values[i] = d * (block[4 + i] & 15) + m;
    values[i + 16] = d * (block[4 + i] >> 4) + m;
  }
}

// f16 d, f16 dmin, 12 bytes with a 6-bit scale and minimum for each of 8 runs of 32 values, 128 bytes of nibbles: two
// runs for each 32 bytes, the first in the low nibbles.
void decode_q4_k(const uint8_t *block, float *values) {
  const float d = f16_at(block), dmin = f16_at(block + 2);
  const uint8_t *packed = block + 4, *nibbles = block + 16;
  for (int run = 0; run < 8; ++run) {
    const int i = run & 3;
    const int scale = run < 4 ? packed[i] & 63 : (packed[i + 8] & 15) | packed[i] >> 6 << 4;
    const int minimum = run < 4 ? packed[i + 4] & 63 : packed[i + 8] >> 4 | packed[i + 4] >> 6 << 4;
    const float step = d * scale, offset = -(dmin * minimum);
    for (int j = 0; j < 32; ++j) {
      const int byte = nibbles[run / 2 * 32 + j];
      values[run * 32 + j] = step * (run & 1 ? byte >> 4 : byte & 15) + offset;
    }
  }
}

// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales (one for 16 values), f16 d. Each half of the
// block has four runs of 32 values, which share 64 and 32 of those bytes. (d * scale) * (q - 32), as one exact fma.
void decode_q6_k(const uint8_t *block, float *values) {
  const float d = f16_at(block + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, run = i / 32 % 4, j = i % 32;
    const int low = block[half * 64 + run % 2 * 32 + j] >> run / 2 * 4 & 15;
    const int high = block[128 + half * 32 + j] >> run * 2 & 3;
    const float step = d * static_cast<int8_t>(block[192 + i / 16]);
    values[i] = step * (low | high << 4) + -32 * step;
  }
}

}  // namespace

const BlockFormat *block_format(int dtype) {
  static constexpr BlockFormat kQ8_0{32, 8, 1, true}, kQ4_0{32, 4, 1, true}, kQ4_1{32, 4, 2, true},
      kQ4_K{256, 35, 2, true}, kQ6_K{256, 52, 1, false};
  switch (dtype) {
    case MSGL_Q8_0:
      return &kQ8_0;
    case MSGL_Q4_0:
      return &kQ4_0;
    case MSGL_Q4_1:
      return &kQ4_1;
    case MSGL_Q4_K:
      return &kQ4_K;
    case MSGL_Q6_K:
      return &kQ6_K;
    default:
      return nullptr;
  }
}

int64_t file_bytes(int dtype, int64_t count) {
  if (const BlockFormat *format = block_format(dtype)) return count / format->values * format->bytes();
  return count * (dtype == MSGL_F32 ? 4 : 2);
}

void decode_block(int dtype, const uint8_t *block, float *values) {
  switch (dtype) {
    case MSGL_Q8_0:
      return decode_q8_0(block, values);
    case MSGL_Q4_0:
      return decode_q4_0(block, values);
    case MSGL_Q4_1:
      return decode_q4_1(block, values);
    case MSGL_Q4_K:
      return decode_q4_k(block, values);
    default:
      return decode_q6_k(block, values);
  }
}

void decode_values(int dtype, const void *source, int64_t count, float *values) {
  if (const BlockFormat *format = block_format(dtype)) {
    const auto *block = static_cast<const uint8_t *>(source);
    for (int64_t i = 0; i < count; i += format->values, block += format->bytes()) {
      decode_block(dtype, block, values + i);
    }
  } else {
    MSGL_PICK(to_floats)(values, source, dtype, count);
  }
}

}  // namespace msgl
