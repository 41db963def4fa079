/*
 * device.h: what every file of this library stands on: the device, its resources, errors, and kernel launches.
 *
 * Read in this order: device.h, vector.cuh (what kernels share), then a file per family of ops: memory, graph, batch,
 * norm, elementwise, rotary, attention*, linear + gemv, sample; loader + convert + weight for what comes from files.
 */
#ifndef MINISGL_DEVICE_H
#define MINISGL_DEVICE_H

#include <cuda_runtime.h>

#include <cstdarg>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "minisgl.h"

namespace minisgl {

class Loader;
class Linear;

/* Throws std::runtime_error with a printf-formatted text. */
[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char *format, ...);

inline void check(cudaError_t status, const char *what) {
  if (status != cudaSuccess) {
    cudaGetLastError();  // a failed launch must not be reported again by the next
    fail("%s: %s", what, cudaGetErrorString(status));
  }
}

/* Keeps the text for msgl_last_error and returns a status other than 0. */
int32_t report(const char *text) noexcept;

/* The C boundary: runs `body`, turning what it throws into a status. */
template <class Body>
int32_t guard(Body body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception &error) {
    return report(error.what());
  } catch (...) {
    return report("unknown error");
  }
}

/* Anything that a device frees when it closes. */
struct Owned {
  virtual ~Owned() = default;
};

/* Device memory with an owner. */
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(size_t bytes) {
    if (bytes > 0) check(cudaMalloc(&pointer_, bytes), "device memory");
  }
  DeviceBuffer(DeviceBuffer &&other) noexcept : pointer_(other.pointer_) { other.pointer_ = nullptr; }
  DeviceBuffer &operator=(DeviceBuffer &&other) noexcept {
    std::swap(pointer_, other.pointer_);
    return *this;
  }
  ~DeviceBuffer() { cudaFree(pointer_); }
  template <class T = void>
  T *get() const {
    return static_cast<T *>(pointer_);
  }

 private:
  void *pointer_ = nullptr;
};

}  // namespace minisgl

struct msgl_device {
  int index = 0;
  int multiprocessors = 0;
  int capability = 0;         // 10 * major + minor
  int shared_per_block = 0;   // bytes of shared memory that a block may opt in to
  bool dependent_launch = false;  // kernels run as compiled for programmatic dependent launch (Hopper on)
  const void *stored_cache = nullptr;  // k_cache of the op before, if that was msgl_rotary_store; see DecodePlan::run
  bool capturing = false;         // between msgl_capture_begin and _end, where nothing may wait for the device
  bool weights_written = false;   // the op before may have written weights: the next kernel must not start early
  cudaStream_t stream = nullptr;
  minisgl::DeviceBuffer sampling_scratch;  // of msgl_sample, then msgl_logprobs: maxima and counts are 0 between ops
  std::unique_ptr<minisgl::Linear> linear;
  std::unique_ptr<minisgl::Loader> loader;
  std::unordered_map<const void *, std::unique_ptr<minisgl::Owned>> owned;  // all that msgl_*_create and _alloc gave out

  msgl_device();
  ~msgl_device();

  template <class T>
  T *adopt(std::unique_ptr<T> object) {
    T *raw = object.get();
    owned.emplace(raw, std::move(object));
    return raw;
  }
  void release(const void *object) {
    if (object != nullptr && owned.erase(object) == 0) minisgl::fail("not an object of this device");
  }
};

namespace minisgl {

/* guard, for calls that work on a device: makes it the thread's current one first. */
template <class Body>
int32_t on_device(msgl_device *device, Body body) noexcept {
  return guard([&] {
    if (device == nullptr) fail("the device is null");
    check(cudaSetDevice(device->index), "cudaSetDevice");
    body();
  });
}

/* Throws during a capture: `what` waits for the device or changes its memory, and would break the capture. */
inline void refuse_in_capture(const msgl_device *device, const char *what) {
  if (device->capturing) fail("%s is not possible while ops are captured", what);
}

/*
 * How a kernel follows the one before it in the stream.
 *  plain      it starts when the one before has ended
 *  dependent  it may start earlier (programmatic dependent launch) and must call dependency_wait() before it touches
 *             anything that an op wrote; see vector.cuh for the rule on what it may read before that
 */
enum class Follow { plain, dependent };

template <class... Parameters, class... Arguments>
void launch(msgl_device *device, Follow follow, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = device->stream;
  config.attrs = &attribute;
  config.numAttrs = follow == Follow::dependent && device->dependent_launch && !device->weights_written ? 1 : 0;
  device->weights_written = false;
  device->stored_cache = nullptr;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "kernel launch");
}

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

size_t sampling_scratch_bytes();  // sample.cu

inline int dtype_bytes(int32_t dtype) {
  switch (dtype) {
    case MSGL_F32:
    case MSGL_I32:
      return 4;
    case MSGL_F16:
    case MSGL_BF16:
      return 2;
    default:
      fail("dtype %d has no single elements", dtype);
  }
}

}  // namespace minisgl

#endif
