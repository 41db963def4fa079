/*
 * linear.h: products with weights. Few tokens go to our kernels (gemv.cu), which are as fast as the weights can be read;
 * the rest to those for Hopper (tiled.cu) or to cuBLASLt, whichever was measured to be faster (algorithm.h).
 */
#ifndef MINISGL_LINEAR_H
#define MINISGL_LINEAR_H

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "algorithm.h"
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
  const void *norm = nullptr;  // x is RMS-normalised with this weight first: gemv.cu only
  float epsilon = 0.f;
  bool gated = false;  // W = [gate; up], out [tokens, n / 2] = silu(gate) * up: our kernels only

  Shape shape() const { return {weight->n, weight->k, tokens, form()}; }
  Form form() const {
    return gated ? Form::gated : out_dtype == MSGL_F32 ? Form::f32 : add ? Form::add : Form::plain;
  }
};

/* How a product beyond gemv.cu is computed. */
struct LinearChoice {
  bool tiled;
  TiledPlan plan;                 // of tiled.cu
  CublasLt::Algorithm algorithm;  // of cuBLASLt otherwise
};

/* The products of one device beyond gemv.cu: cuBLASLt's handle and workspace, and the algorithm chosen for each shape. */
class Linear {
 public:
  explicit Linear(msgl_device *device);
  ~Linear();
  /* A gated product comes as its plain one where choose() did not give a tiled plan for it. */
  void run(const LinearArguments &arguments, const LinearChoice &choice);
  /* Depends on shapes and types alone, never on what was run before. */
  const LinearChoice &choose(const LinearArguments &arguments);
  /* An algorithm for this product, if it can be used for it. */
  bool accept(const Algorithm &algorithm, const LinearArguments &arguments, LinearChoice *choice) const;
  /* What cuBLASLt would take, best first, up to `most`. */
  std::vector<Algorithm> heuristics(const LinearArguments &arguments, int most) const;
  /* Entries that choose() knows from now on. */
  void learn(const std::vector<Tuned> &entries);
  /* "cuBLASLt 13.1, path", or why there is none. */
  std::string describe() const;

 private:
  using Key = std::tuple<int64_t, int64_t, int64_t, int32_t, int32_t, Form, bool>;  // tokens, n, k, dtypes, form, bias
  struct Product;
  LinearChoice find(const LinearArguments &arguments) const;

  static constexpr size_t workspace_bytes = 32 << 20;
  msgl_device *device_;
  std::unique_ptr<CublasLt> library_;
  std::string missing_;  // why library_ is null
  CublasLt::Handle handle_ = nullptr;
  DeviceBuffer workspace_;
  AlgorithmTable table_;
  std::map<Key, LinearChoice> chosen_;
};

/* gemv.cu: whether our kernels take this product, and the product. */
bool gemv_supports(const msgl_device *device, const LinearArguments &arguments);
void enqueue_gemv(msgl_device *device, const LinearArguments &arguments);

/* tiled.cu: whether our kernel for Hopper takes this product, and the product. */
bool tiled_supports(const msgl_device *device, const LinearArguments &arguments);
void enqueue_tiled(msgl_device *device, const LinearArguments &arguments, const TiledPlan &plan);

/* The unfused neighbours of a product: norm.cu, elementwise.cu. */
void enqueue_rms_norm(msgl_device *device, void *out, const void *x, const void *weight, int tokens, int size,
                      float epsilon, int32_t dtype);
void enqueue_silu_mul(msgl_device *device, void *out, const void *gate_up, int tokens, int size, int32_t dtype);

}  // namespace minisgl

#endif
