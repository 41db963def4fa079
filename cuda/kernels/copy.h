/* copy.h: copies within a step. */
#ifndef MINISGL_COPY_H
#define MINISGL_COPY_H

#include "device.h"

namespace minisgl {

/*
 * Enqueues a copy between pinned host memory and device memory, or within device memory; memory.cu. What a step uploads and
 * brings back is small, and goes by a kernel: between a kernel and the copy engine the device pauses for 6 to 8 us.
 */
void enqueue_copy(msgl_device *device, void *destination, const void *source, size_t bytes);

}  // namespace minisgl

#endif
