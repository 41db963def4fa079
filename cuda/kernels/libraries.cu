/* libraries.cu: what this library stands on: the driver, the runtime, and what is looked for at run time. */
#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "cublaslt.h"
#include "device.h"

namespace minisgl {
namespace {

/* "12.8" of 1000 * major + 10 * minor, the form of CUDA's versions. */
std::string cuda_version(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string file_of(const void *symbol) {
  Dl_info info{};
  return dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "unknown";
}

struct Found {
  std::string version, where;
};

/* Describes a library by `describe`, or by what it throws. */
template <class Describe>
std::string line(const char *name, Describe describe) {
  Found found;
  try {
    found = describe();
  } catch (const std::exception &error) {
    found.where = error.what();
  }
  std::string text = std::string(name) + '\t' + found.version + '\t' + found.where;
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text + '\n';
}

/* A library that is never closed, and one of its functions. */
template <class Function>
Function function_of(const char *library, const char *name) {
  void *const handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) fail("not found: %s", dlerror());
  void *const function = dlsym(handle, name);
  if (function == nullptr) fail("%s has no %s", library, name);
  return reinterpret_cast<Function>(function);
}

/* The version of the kernel driver, by NVML (https://docs.nvidia.com/deploy/nvml-api). */
Found driver() {
  constexpr const char *library = "libnvidia-ml.so.1";
  const auto initialize = function_of<int (*)()>(library, "nvmlInit_v2");
  const auto version = function_of<int (*)(char *, unsigned)>(library, "nvmlSystemGetDriverVersion");
  char text[96] = "";
  int status = initialize();
  if (status == 0) {
    status = version(text, sizeof text);
    function_of<int (*)()>(library, "nvmlShutdown")();
  }
  if (status != 0) fail("the driver does not answer NVML (status %d): is its kernel module loaded?", status);
  return {text, file_of(reinterpret_cast<const void *>(version))};
}

Found libcuda() {
  constexpr const char *library = "libcuda.so.1";
  constexpr int no_device = 100, least = CUDART_VERSION / 1000 * 1000;  // CUDA_ERROR_NO_DEVICE; any minor version does
  const auto initialize = function_of<int (*)(unsigned)>(library, "cuInit");
  const int status = initialize(0);
  if (status == no_device) fail("the driver has no GPU");
  int version = 0;
  if (function_of<int (*)(int *)>(library, "cuDriverGetVersion")(&version) == 0 && version < least)
    fail("the driver is for CUDA %s, this library needs %s", cuda_version(version).c_str(), cuda_version(least).c_str());
  if (status != 0) fail("the driver does not answer: cuInit gives status %d", status);
  return {cuda_version(version), file_of(reinterpret_cast<const void *>(initialize))};
}

Found runtime() {
  int version = 0;
  check(cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
  return {cuda_version(version), "in this library, compiled for " MINISGL_CUDA_ARCHS};
}

Found cublaslt() {
  const CublasLt library;
  const size_t version = library.version();
  return {std::to_string(version / 10000) + "." + std::to_string(version % 10000 / 100) + "." +
              std::to_string(version % 100),
          file_of(reinterpret_cast<const void *>(library.version))};
}

Found nccl() {
  const auto version = function_of<int (*)(int *)>("libnccl.so.2", "ncclGetVersion");
  int number = 0;
  if (version(&number) != 0) fail("ncclGetVersion failed");
  return {std::to_string(number / 10000) + "." + std::to_string(number % 10000 / 100) + "." +
              std::to_string(number % 100),
          file_of(reinterpret_cast<const void *>(version))};
}

}  // namespace
}  // namespace minisgl

int32_t msgl_libraries(char *text, int64_t bytes) {
  using namespace minisgl;
  return guard([&] {
    const std::string lines = line("NVIDIA driver", driver) + line("libcuda", libcuda) + line("CUDA runtime", runtime) +
                              line("cuBLASLt", cublaslt) + line("NCCL", nccl);
    if (bytes < 1) return;
    const size_t count = std::min(lines.size(), static_cast<size_t>(bytes - 1));
    memcpy(text, lines.data(), count);
    text[count] = 0;
  });
}
