/* device.cu: opening and closing the device, its properties, and errors. */
#include "device.h"

#include <cstdio>
#include <cstring>

#include "linear.h"
#include "loader.h"

namespace minisgl {
namespace {

thread_local std::string last_error;

/* Compiled as all others are: it tells what their code on a device was compiled for. */
__global__ void probe_kernel() {}

/* The compute capability that the kernels were compiled for which this device runs, as 10 * major + minor. */
int compiled_capability(const cudaDeviceProp &device) {
  cudaFuncAttributes attributes{};
  const cudaError_t status = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();
    fail("%s has compute capability %d.%d, and this library was compiled for %s alone", device.name, device.major,
         device.minor, MINISGL_CUDA_ARCHS);
  }
  check(status, "loading kernels");
  return attributes.ptxVersion;
}

}  // namespace

void fail(const char *format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  throw std::runtime_error(text);
}

int32_t report(const char *text) noexcept {
  try {
    last_error = text;
  } catch (...) {
    last_error.clear();
  }
  return 1;
}

}  // namespace minisgl

using namespace minisgl;

msgl_device::msgl_device() = default;

msgl_device::~msgl_device() {
  cudaSetDevice(index);
  loader.reset();
  if (stream != nullptr) cudaStreamSynchronize(stream);
  owned.clear();
  if (stream != nullptr) cudaStreamSynchronize(stream);  // memory is freed in stream order
  linear.reset();
  if (stream != nullptr) cudaStreamDestroy(stream);
}

const char *msgl_last_error(void) { return last_error.c_str(); }

int32_t msgl_device_count(int32_t *count) {
  return guard([&] {
    int devices = 0;
    // Without a driver, or with one too old, this library has no device; that is no error of the caller.
    if (cudaGetDeviceCount(&devices) != cudaSuccess) {
      cudaGetLastError();
      devices = 0;
    }
    *count = devices;
  });
}

int32_t msgl_device_open(msgl_device **device, int32_t index, int32_t, int32_t) {
  return guard([&] {
    int count = 0;
    check(cudaGetDeviceCount(&count), "no CUDA device");
    if (index < 0 || index >= count) fail("there is no CUDA device %d: this host has %d", index, count);
    check(cudaSetDevice(index), "cudaSetDevice");
    auto opened = std::make_unique<msgl_device>();
    opened->index = index;
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
    opened->multiprocessors = properties.multiProcessorCount;
    opened->capability = properties.major * 10 + properties.minor;
    opened->shared_per_block = static_cast<int>(properties.sharedMemPerBlockOptin);
    if (opened->capability < 80) fail("%s: compute capability 8.0 or later is needed", properties.name);
    // Code for earlier devices, which later ones can run, does not wait for the kernel before.
    opened->dependent_launch = compiled_capability(properties) >= 90;
    check(cudaStreamCreateWithFlags(&opened->stream, cudaStreamNonBlocking), "cudaStreamCreate");
    opened->sampling_scratch = DeviceBuffer(sampling_scratch_bytes());
    check(cudaMemsetAsync(opened->sampling_scratch.get(), 0, sampling_scratch_bytes(), opened->stream), "cudaMemset");
    opened->linear = std::make_unique<Linear>(opened.get());
    opened->loader = std::make_unique<Loader>(index);
    *device = opened.release();
  });
}

int32_t msgl_device_close(msgl_device *device) {
  return guard([&] { delete device; });
}

int32_t msgl_device_properties(msgl_device *device, msgl_properties *out) {
  return on_device(device, [&] {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device->index), "cudaGetDeviceProperties");
    if (!device->capturing) check(cudaStreamSynchronize(device->stream), "the device");  // what is freed counts as free
    size_t free_bytes = 0, total_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
    *out = msgl_properties{};
    snprintf(out->name, sizeof out->name, "%.127s", properties.name);
    snprintf(out->library, sizeof out->library, "CUDA %d.%d for %s; %s", CUDART_VERSION / 1000,
             CUDART_VERSION % 1000 / 10, MINISGL_CUDA_ARCHS, device->linear->describe().c_str());
    out->total_memory = static_cast<int64_t>(total_bytes);
    out->free_memory = static_cast<int64_t>(free_bytes);
    out->compute_units = device->multiprocessors;
    out->capability = device->capability;
    out->dtypes = out->weight_dtypes = 1 << MSGL_F16 | 1 << MSGL_BF16;
    out->float_activations = 0;
    out->asynchronous = 1;
  });
}

int32_t msgl_device_synchronize(msgl_device *device) {
  return on_device(device, [&] {
    refuse_in_capture(device, "waiting for the device");
    check(cudaStreamSynchronize(device->stream), "the device");
  });
}
