/*
 * convert.cu: decodes what files hold. One thread a value: loading waits for the file, not for this.
 *
 * GGUF blocks (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; numbers are bytes):
 *
 *   Q8_0   d:2 | q:32                                   d * q[i]
 *   Q4_0   d:2 | nibbles:16                             d * (nibble(i) - 8)
 *   Q4_1   d:2 | m:2 | nibbles:16                       d * nibble(i) + m
 *          nibble(i): low half of byte i for i < 16, else high half of byte i - 16
 *   Q4_K   d:2 | m:2 | scales:12 | nibbles:128          8 groups of 32: d * scale(g) * nibble - m * minimum(g)
 *   Q6_K   low:128 | high:64 | scales:16 | d:2          16 groups of 16: d * scale(g) * (q - 32)
 */
#include "convert.h"

#include "vector.cuh"

namespace minisgl {
namespace {

DEVICE float half_at(const uint8_t *p) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(p[0] | p[1] << 8)));
}

struct ReadF32 {
  static constexpr int values = 1, bytes = 4;
  DEVICE static float read(const uint8_t *p, int) { return *reinterpret_cast<const float *>(p); }
};

struct ReadF16 {
  static constexpr int values = 1, bytes = 2;
  DEVICE static float read(const uint8_t *p, int) { return half_at(p); }
};

struct ReadBF16 {
  static constexpr int values = 1, bytes = 2;
  DEVICE static float read(const uint8_t *p, int) {
    return __uint_as_float(static_cast<uint32_t>(p[0] | p[1] << 8) << 16);
  }
};

struct ReadQ8_0 {
  static constexpr int values = 32, bytes = 34;
  DEVICE static float read(const uint8_t *p, int i) { return half_at(p) * static_cast<int8_t>(p[2 + i]); }
};

DEVICE int nibble(const uint8_t *p, int i) { return i < 16 ? p[i] & 15 : p[i - 16] >> 4; }

struct ReadQ4_0 {
  static constexpr int values = 32, bytes = 18;
  DEVICE static float read(const uint8_t *p, int i) { return half_at(p) * (nibble(p + 2, i) - 8); }
};

struct ReadQ4_1 {
  static constexpr int values = 32, bytes = 20;
  DEVICE static float read(const uint8_t *p, int i) { return half_at(p) * nibble(p + 4, i) + half_at(p + 2); }
};

struct ReadQ4_K {
  static constexpr int values = 256, bytes = 144;
  DEVICE static float read(const uint8_t *p, int i) {
    const int group = i / 32;
    const uint8_t *packed = p + 4;
    int scale, minimum;  // of 6 bits; the last four groups have their high bits in the first eight bytes
    if (group < 4) {
      scale = packed[group] & 63;
      minimum = packed[group + 4] & 63;
    } else {
      scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4;
      minimum = (packed[group + 4] >> 4) | (packed[group] >> 6) << 4;
    }
    const int byte = p[16 + group / 2 * 32 + i % 32];
    const int q = group % 2 == 0 ? byte & 15 : byte >> 4;
    return half_at(p) * scale * q - half_at(p + 2) * minimum;
  }
};

struct ReadQ6_K {
  static constexpr int values = 256, bytes = 210;
  DEVICE static float read(const uint8_t *p, int i) {
    const int half = i / 128, quarter = i % 128 / 32, j = i % 32;
    const int low = p[half * 64 + quarter % 2 * 32 + j];
    const int high = p[128 + half * 32 + j] >> (2 * quarter) & 3;
    const int q = ((quarter < 2 ? low & 15 : low >> 4) | high << 4) - 32;
    return half_at(p + 208) * static_cast<int8_t>(p[192 + i / 16]) * q;
  }
};

template <class Read, class T>
__global__ void convert_kernel(T *destination, const uint8_t *source, int64_t total, int64_t columns,
                               int64_t row_bytes) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int64_t row = i / columns, column = i % columns;
    const uint8_t *block = source + row * row_bytes + column / Read::values * Read::bytes;
    destination[i] = from_float<T>(Read::read(block, static_cast<int>(column % Read::values)));
  }
}

template <class F>
void dispatch_read(int32_t dtype, F f) {
  switch (dtype) {
    case MSGL_F32:
      return f(ReadF32());
    case MSGL_F16:
      return f(ReadF16());
    case MSGL_BF16:
      return f(ReadBF16());
    case MSGL_Q8_0:
      return f(ReadQ8_0());
    case MSGL_Q4_0:
      return f(ReadQ4_0());
    case MSGL_Q4_1:
      return f(ReadQ4_1());
    case MSGL_Q4_K:
      return f(ReadQ4_K());
    case MSGL_Q6_K:
      return f(ReadQ6_K());
    default:
      fail("dtype %d cannot be loaded", dtype);
  }
}

}  // namespace

int64_t packed_bytes(int32_t dtype, int64_t count) {
  if (dtype == MSGL_I32) return count * 4;
  int64_t bytes = 0;
  dispatch_read(dtype, [&](auto read) {
    using Read = decltype(read);
    if (count % Read::values != 0)
      fail("%lld values are not whole blocks of %d", static_cast<long long>(count), Read::values);
    bytes = count / Read::values * Read::bytes;
  });
  return bytes;
}

void require_conversion(int32_t dtype, int32_t destination_dtype) {
  if (dtype == MSGL_I32 && destination_dtype == MSGL_I32) return;
  dispatch_read(dtype, [](auto) {});
  if (destination_dtype != MSGL_F32 && destination_dtype != MSGL_F16 && destination_dtype != MSGL_BF16)
    fail("values of dtype %d cannot be encoded as dtype %d", dtype, destination_dtype);
}

void enqueue_convert(cudaStream_t stream, void *destination, int32_t destination_dtype, const void *source,
                     int32_t dtype, int64_t rows, int64_t columns, int64_t row_bytes) {
  const int64_t total = rows * columns;
  if (dtype == destination_dtype) {  // also the dtypes that are only copied
    const size_t width = static_cast<size_t>(columns * dtype_bytes(dtype));
    check(cudaMemcpy2DAsync(destination, width, source, static_cast<size_t>(row_bytes), width,
                            static_cast<size_t>(rows), cudaMemcpyDeviceToDevice, stream),
          "copying weights");
    return;
  }
  const auto convert = [&](auto *type) {
    using T = std::remove_pointer_t<decltype(type)>;
    dispatch_read(dtype, [&](auto read) {
      const unsigned grid = static_cast<unsigned>(std::min<int64_t>(ceil_div(total, 256), 2048));
      convert_kernel<decltype(read), T><<<grid, 256, 0, stream>>>(static_cast<T *>(destination),
                                                                  static_cast<const uint8_t *>(source), total, columns,
                                                                  row_bytes);
      check(cudaGetLastError(), "converting weights");
    });
  };
  if (destination_dtype == MSGL_F32) return convert(static_cast<float *>(nullptr));
  dispatch_half(destination_dtype, convert);
}

}  // namespace minisgl
