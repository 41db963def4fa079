/* cublaslt.cu: finds and opens cuBLASLt. It is never closed: what it registers with the driver lives until the end. */
#include "cublaslt.h"

#include <dlfcn.h>
#include <glob.h>

#include <cstdlib>
#include <sstream>
#include <vector>

#include "device.h"

namespace minisgl {
namespace {

std::string environment(const char *name) {
  const char *value = getenv(name);
  return value == nullptr ? "" : value;
}

/* Existing files that match a pattern, newest version first. */
void append_matches(std::vector<std::string> &paths, const std::string &pattern) {
  glob_t found{};
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0)
    for (size_t i = found.gl_pathc; i > 0; i--) paths.emplace_back(found.gl_pathv[i - 1]);
  globfree(&found);
}

std::vector<std::string> candidates() {
  std::vector<std::string> paths;
  if (const std::string named = environment("MINISGL_CUBLASLT"); !named.empty()) return {named};
  for (const char *name : {"libcublasLt.so.13", "libcublasLt.so.12"}) paths.emplace_back(name);
  const std::string library = "/libcublasLt.so.1[23]";
  for (const char *home : {"CUDA_HOME", "CUDA_PATH"})
    if (const std::string root = environment(home); !root.empty()) append_matches(paths, root + "/lib64" + library);
  append_matches(paths, "/usr/local/cuda*/lib64" + library);
  append_matches(paths, "/usr/local/cuda*/targets/*/lib" + library);
  std::vector<std::string> prefixes;
  if (const std::string root = environment("VIRTUAL_ENV"); !root.empty()) prefixes.push_back(root);
  std::istringstream folders(environment("PATH"));
  for (std::string folder; std::getline(folders, folder, ':');) prefixes.push_back(folder + "/..");
  if (const std::string home = environment("HOME"); !home.empty()) prefixes.push_back(home + "/.local");
  for (const std::string &prefix : prefixes)
    for (const char *packages : {"site-packages", "dist-packages"})
      append_matches(paths, prefix + "/lib/python3*/" + packages + "/nvidia/*/lib" + library);
  return paths;
}

}  // namespace

CublasLt::CublasLt() {
  void *library = nullptr;
  std::string reason;  // of the first that is there and cannot be opened, else of the first
  bool found = false;
  for (const std::string &candidate : candidates()) {
    library = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    path = candidate;
    if (library != nullptr) break;
    const std::string error = dlerror();
    if (found) continue;
    found = error.find("No such file") == std::string::npos;
    if (found || reason.empty()) reason = error;
  }
  if (library == nullptr)
    fail("%s (%s). Install the CUDA toolkit or `pip install nvidia-cublas`, or name the file "
         "libcublasLt.so.12 or .13 in MINISGL_CUBLASLT",
         found ? "cannot be opened" : "was not found", reason.c_str());
  const auto find = [&](auto &function, const char *name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) fail("%s has no %s", path.c_str(), name);
  };
  find(create, "cublasLtCreate");
  find(destroy, "cublasLtDestroy");
  find(version, "cublasLtGetVersion");
  find(descriptor_create, "cublasLtMatmulDescCreate");
  find(descriptor_destroy, "cublasLtMatmulDescDestroy");
  find(descriptor_set, "cublasLtMatmulDescSetAttribute");
  find(layout_create, "cublasLtMatrixLayoutCreate");
  find(layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(preference_create, "cublasLtMatmulPreferenceCreate");
  find(preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(heuristics, "cublasLtMatmulAlgoGetHeuristic");
  find(algorithm_init, "cublasLtMatmulAlgoInit");
  find(algorithm_get, "cublasLtMatmulAlgoConfigGetAttribute");
  find(algorithm_set, "cublasLtMatmulAlgoConfigSetAttribute");
  find(algorithm_check, "cublasLtMatmulAlgoCheck");
  find(matmul, "cublasLtMatmul");
}

}  // namespace minisgl
