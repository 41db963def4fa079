/* memory.cu: device and pinned host memory, copies, fills, and random values. */
#include <algorithm>
#include <cstring>

#include "../philox.h"
#include "copy.h"
#include "vector.cuh"
#include "weight.h"

using namespace minisgl;

namespace {

struct DeviceMemory : Owned {
  DeviceMemory(void *pointer, cudaStream_t stream) : pointer(pointer), stream(stream) {}
  ~DeviceMemory() override { cudaFreeAsync(pointer, stream); }
  void *pointer;
  cudaStream_t stream;
};

struct HostMemory : Owned {
  explicit HostMemory(void *pointer) : pointer(pointer) {}
  ~HostMemory() override { cudaFreeHost(pointer); }
  void *pointer;
};

/* destination[i] = scale * random_value(seed, i), one value a thread. */
template <class T>
__global__ void random_kernel(T *destination, int64_t count, uint64_t seed, float scale) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride)
    destination[i] = from_float<T>(scale * random_value(seed, i));
}

constexpr size_t most_by_kernel = 64 << 10;

/* One word a thread. Host memory is read past the caches, which might hold what it was before. */
__global__ void copy_kernel(uint32_t *destination, const uint32_t *source, int words) {
  dependency_wait();
  dependency_trigger();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < words) destination[i] = __ldcv(source + i);
}

}  // namespace

namespace minisgl {

void enqueue_copy(msgl_device *device, void *destination, const void *source, size_t bytes) {
  const bool words = (reinterpret_cast<uintptr_t>(destination) | reinterpret_cast<uintptr_t>(source) | bytes) % 4 == 0;
  if (bytes > most_by_kernel || !words) {
    check(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDefault, device->stream), "copy");
    return;
  }
  const int count = static_cast<int>(bytes / 4);
  launch(device, Follow::dependent, copy_kernel, static_cast<unsigned>(ceil_div(count, 256)), 256, 0,
         static_cast<uint32_t *>(destination), static_cast<const uint32_t *>(source), count);
}

void enqueue_random(msgl_device *device, void *destination, int64_t count, int32_t dtype, uint64_t seed, float scale) {
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(ceil_div(count, 256), 16 * device->multiprocessors)));
  const auto run = [&](auto *type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(device, Follow::plain, random_kernel<T>, grid, 256, 0, static_cast<T *>(destination), count, seed, scale);
    device->weights_written = true;
  };
  if (dtype == MSGL_F32) return run(static_cast<float *>(nullptr));
  dispatch_half(dtype, run);
}

}  // namespace minisgl

int32_t msgl_alloc(msgl_device *device, void **pointer, int64_t bytes) {
  return on_device(device, [&] {
    refuse_in_capture(device, "allocating memory");
    void *memory = nullptr;
    if (cudaMallocAsync(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1)), device->stream) != cudaSuccess) {
      cudaGetLastError();
      size_t left = 0, total = 0;
      cudaMemGetInfo(&left, &total);
      fail("device memory: %lld bytes (%.2f GiB) were asked for and %.2f of %.2f GiB are left",
           static_cast<long long>(bytes), bytes / 0x1p30, left / 0x1p30, total / 0x1p30);
    }
    device->owned.emplace(memory, std::make_unique<DeviceMemory>(memory, device->stream));
    check(cudaStreamSynchronize(device->stream), "the device");  // loads come by other streams
    *pointer = memory;
  });
}

int32_t msgl_free(msgl_device *device, void *pointer) {
  return on_device(device, [&] {
    refuse_in_capture(device, "freeing memory");
    device->release(pointer);
  });
}

int32_t msgl_host_alloc(msgl_device *device, void **pointer, int64_t bytes) {
  return on_device(device, [&] {
    void *memory = nullptr;
    const size_t size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
    check(cudaMallocHost(&memory, size), "pinned host memory");
    memset(memory, 0, size);
    device->owned.emplace(memory, std::make_unique<HostMemory>(memory));
    *pointer = memory;
  });
}

int32_t msgl_host_free(msgl_device *device, void *pointer) {
  return on_device(device, [&] {
    refuse_in_capture(device, "freeing memory");
    check(cudaStreamSynchronize(device->stream), "the device");  // a copy may still use it
    device->release(pointer);
  });
}

int32_t msgl_copy(msgl_device *device, void *destination, const void *source, int64_t bytes) {
  return on_device(device, [&] { enqueue_copy(device, destination, source, static_cast<size_t>(bytes)); });
}

int32_t msgl_fill(msgl_device *device, void *destination, int32_t value, int64_t bytes) {
  return on_device(device, [&] {
    check(cudaMemsetAsync(destination, value, static_cast<size_t>(bytes), device->stream), "fill");
  });
}

int32_t msgl_random(msgl_device *device, void *destination, int64_t count, int32_t dtype, uint64_t seed, float scale) {
  return on_device(device, [&] { enqueue_random(device, destination, count, dtype, seed, scale); });
}
