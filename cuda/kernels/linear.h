/*
 * linear.h: products with weights. Few tokens go to our kernels (gemv.cu), which are as fast as the weights can be read;
 * the rest to cuBLASLt.
 */
#ifndef MINISGL_LINEAR_H
#define MINISGL_LINEAR_H

#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "cublaslt.h"
#include "device.h"
#include "weight.h"

namespace minisgl {

/* out[tokens, n] = x W^T + bias; what our kernels can do on the way stands last. */
struct LinearArguments {
  void *out;
  const void *x, *bias;
  const msgl_weight *weight;
  int tokens;
  int32_t dtype, out_dtype;
  bool add = false;            // to what out holds
  const void *norm = nullptr;  // x is RMS-normalised with this weight first: our kernels only
  float epsilon = 0.f;
  bool gated = false;  // W = [gate; up], out [tokens, n / 2] = silu(gate) * up: our kernels only
};

/* cuBLASLt on one device: handle, workspace, and the algorithm chosen for each shape. */
class Linear {
 public:
  explicit Linear(msgl_device *device);
  ~Linear();
  void run(const LinearArguments &arguments);
  /* "cuBLASLt 13.1, path", or why there is none. */
  std::string describe() const;

 private:
  using Key = std::tuple<int64_t, int64_t, int64_t, int32_t, int32_t, bool>;  // tokens, n, k, dtypes, bias
  struct Product;
  const CublasLt::Heuristic &choose(const LinearArguments &arguments, bool fused_bias);

  static constexpr size_t workspace_bytes = 32 << 20;
  msgl_device *device_;
  std::unique_ptr<CublasLt> library_;
  std::string missing_;  // why library_ is null
  CublasLt::Handle handle_ = nullptr;
  DeviceBuffer workspace_;
  std::map<Key, CublasLt::Heuristic> chosen_;
};

/* gemv.cu: whether our kernels take this product, and the product. */
bool gemv_supports(const msgl_device *device, const LinearArguments &arguments);
void enqueue_gemv(msgl_device *device, const LinearArguments &arguments);

/* The unfused neighbours of a product: norm.cu, elementwise.cu. */
void enqueue_rms_norm(msgl_device *device, void *out, const void *x, const void *weight, int tokens, int size,
                      float epsilon, int32_t dtype);
void enqueue_silu_mul(msgl_device *device, void *out, const void *gate_up, int tokens, int size, int32_t dtype);

}  // namespace minisgl

#endif
