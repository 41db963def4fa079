/* convert.h: values as they lie in files, plain or in GGUF blocks, to the dtype that the device computes with. */
#ifndef MINISGL_CONVERT_H
#define MINISGL_CONVERT_H

#include <cuda_runtime.h>

#include <cstdint>

namespace minisgl {

/* Bytes that `count` values of a dtype take in a file. Throws where count is not a whole number of blocks. */
int64_t packed_bytes(int32_t dtype, int64_t count);

/* Throws where values of one dtype cannot become values of the other. */
void require_conversion(int32_t dtype, int32_t destination_dtype);

/*
 * destination[rows, columns] from rows that lie row_bytes apart in source, both on the device. Rounds to nearest even.
 */
void enqueue_convert(cudaStream_t stream, void *destination, int32_t destination_dtype, const void *source,
                     int32_t dtype, int64_t rows, int64_t columns, int64_t row_bytes);

}  // namespace minisgl

#endif
