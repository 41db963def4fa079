/*
 * cublaslt.h: the part of cuBLASLt that is used, declared after NVIDIA's documentation of its C interface
 * (https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api), and found at run time: the toolkit need not be there when
 * this library is built. Versions 12 and 13 have the same interface here.
 */
#ifndef MINISGL_CUBLASLT_H
#define MINISGL_CUBLASLT_H

#include <cuda_runtime.h>
#include <library_types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace minisgl {

struct CublasLt {
  using Handle = void *;
  using Descriptor = void *;
  using Layout = void *;
  using Preference = void *;
  struct Algorithm {
    uint64_t data[8];
  };
  struct Heuristic {
    Algorithm algorithm;
    size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
  };
  /* What an Algorithm consists of: the attributes of cublasLtMatmulAlgoConfigAttributes_t in their order, the first of
   * which is its id, and their sizes in bytes. An attribute that an algorithm does not have is -1. */
  static constexpr int config_size = 9;
  static constexpr size_t config_bytes[config_size] = {4, 4, 4, 4, 4, 4, 4, 2, 2};
  using Config = std::array<int32_t, config_size>;
  static constexpr int config_tile = 1, config_custom = 5, config_cluster = 8;
  static constexpr int compute_32f = 68;                                               // cublasComputeType_t
  static constexpr int transpose = 1;                                                  // cublasOperation_t
  static constexpr int attribute_transa = 3, attribute_epilogue = 7, attribute_bias_pointer = 8;  // of a Descriptor
  static constexpr int epilogue_bias = 4;                                              // cublasLtEpilogue_t
  static constexpr int preference_workspace = 1;                                       // of a Preference

  int (*create)(Handle *);
  int (*destroy)(Handle);
  size_t (*version)();
  int (*descriptor_create)(Descriptor *, int compute, cudaDataType scale);
  int (*descriptor_destroy)(Descriptor);
  int (*descriptor_set)(Descriptor, int attribute, const void *value, size_t bytes);
  int (*layout_create)(Layout *, cudaDataType, uint64_t rows, uint64_t columns, int64_t leading_dimension);
  int (*layout_destroy)(Layout);
  int (*preference_create)(Preference *);
  int (*preference_destroy)(Preference);
  int (*preference_set)(Preference, int attribute, const void *value, size_t bytes);
  int (*heuristics)(Handle, Descriptor, Layout a, Layout b, Layout c, Layout d, Preference, int requested, Heuristic *,
                    int *found);
  int (*algorithm_init)(Handle, int compute, cudaDataType scale, cudaDataType a, cudaDataType b, cudaDataType c,
                        cudaDataType d, int id, Algorithm *);
  int (*algorithm_get)(const Algorithm *, int attribute, void *value, size_t bytes, size_t *written);
  int (*algorithm_set)(Algorithm *, int attribute, const void *value, size_t bytes);
  int (*algorithm_check)(Handle, Descriptor, Layout a, Layout b, Layout c, Layout d, const Algorithm *, Heuristic *);
  int (*matmul)(Handle, Descriptor, const void *alpha, const void *a, Layout, const void *b, Layout, const void *beta,
                const void *c, Layout, void *d, Layout, const Algorithm *, void *workspace, size_t workspace_bytes,
                cudaStream_t);

  std::string path;  // where it was found

  /*
   * Looks in MINISGL_CUBLASLT (the library's path), the loader's search path, CUDA_HOME, CUDA_PATH and /usr/local/cuda*,
   * and the Python packages of every python on PATH and of VIRTUAL_ENV. Throws with that list where it is nowhere.
   */
  CublasLt();
};

}  // namespace minisgl

#endif
