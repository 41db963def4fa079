/*
 * linear.cu: out[tokens, n] = x[tokens, k] weight[n, k]^T + bias through cuBLASLt, which thinks in columns:
 *
 *   out^T [n, tokens] = op(W) [n, k]  x^T [k, tokens]      W = the weight's memory as a column-major [k, n], transposed
 */
#include "linear.h"

#include "vector.cuh"

namespace minisgl {
namespace {

cudaDataType data_type(int32_t dtype) {
  return dtype == MSGL_F32 ? CUDA_R_32F : dtype == MSGL_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

void require(int status, const char *what) {
  if (status != 0) fail("cuBLASLt: %s failed with status %d", what, status);
}

/* out[i, j] += bias[j], for outputs whose dtype is not the bias's. */
template <class T>
__global__ void add_bias_kernel(float *out, const T *bias, int64_t total, int64_t n) {
  dependency_wait();
  dependency_trigger();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < total) out[i] += to_float(bias[i % n]);
}

/* out[i, j] = x[i] . w[j] + bias[j], a warp an output: for shapes that cuBLASLt refuses. grid (n / 4, tokens) */
template <class T, class Out>
__global__ void any_linear_kernel(Out *out, const T *x, const T *w, const T *bias, int64_t n, int64_t k, bool add) {
  dependency_wait();
  dependency_trigger();
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 4 + threadIdx.x / 32, row = blockIdx.y;
  if (column >= n) return;
  float sum = 0.f;
  for (int64_t i = threadIdx.x % 32; i < k; i += 32) sum += to_float(x[row * k + i]) * to_float(w[column * k + i]);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 != 0) return;
  if (bias != nullptr) sum += to_float(bias[column]);
  out[row * n + column] = from_float<Out>(add ? sum + to_float(out[row * n + column]) : sum);
}

void enqueue_any_linear(msgl_device *device, const LinearArguments &a) {
  dispatch_half(a.dtype, [&](auto *type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto run = [&](auto *out) {
      launch(device, Follow::dependent, any_linear_kernel<T, std::remove_pointer_t<decltype(out)>>,
             dim3(static_cast<unsigned>(ceil_div(a.weight->n, 4)), a.tokens), 128, 0, out, static_cast<const T *>(a.x),
             a.weight->memory.template get<const T>(), static_cast<const T *>(a.bias), a.weight->n, a.weight->k, a.add);
    };
    if (a.out_dtype == MSGL_F32) return run(static_cast<float *>(a.out));
    run(static_cast<T *>(a.out));
  });
}

/* The number of tokens for which an algorithm is asked: exact for the sizes of decode steps, rounded up for the rest. */
int64_t bucket(int64_t tokens) {
  if (tokens <= 64) return tokens;
  const int64_t unit = tokens <= 512 ? 16 : 128;
  return ceil_div(tokens, unit) * unit;
}

}  // namespace

/* The descriptors of one product, freed at its end. */
struct Linear::Product {
  Product(const CublasLt &library, const LinearArguments &a, int64_t tokens, bool bias) : library(library) {
    const int64_t n = a.weight->n, k = a.weight->k;
    require(library.descriptor_create(&descriptor, CublasLt::compute_32f, CUDA_R_32F), "creating a descriptor");
    const int transpose = CublasLt::transpose;
    require(library.descriptor_set(descriptor, CublasLt::attribute_transa, &transpose, sizeof transpose), "transposing");
    if (bias) {
      const int epilogue = CublasLt::epilogue_bias;
      require(library.descriptor_set(descriptor, CublasLt::attribute_epilogue, &epilogue, sizeof epilogue), "epilogue");
      require(library.descriptor_set(descriptor, CublasLt::attribute_bias_pointer, &a.bias, sizeof a.bias), "bias");
    }
    require(library.layout_create(&weight, data_type(a.dtype), k, n, k), "creating a layout");
    require(library.layout_create(&x, data_type(a.dtype), k, tokens, k), "creating a layout");
    require(library.layout_create(&out, data_type(a.out_dtype), n, tokens, n), "creating a layout");
  }
  ~Product() {
    if (out != nullptr) library.layout_destroy(out);
    if (x != nullptr) library.layout_destroy(x);
    if (weight != nullptr) library.layout_destroy(weight);
    if (descriptor != nullptr) library.descriptor_destroy(descriptor);
  }
  const CublasLt &library;
  CublasLt::Descriptor descriptor = nullptr;
  CublasLt::Layout weight = nullptr, x = nullptr, out = nullptr;
};

Linear::Linear(msgl_device *device) : device_(device) {
  try {
    library_ = std::make_unique<CublasLt>();
  } catch (const std::exception &error) {
    missing_ = error.what();  // thrown where it is needed
    return;
  }
  require(library_->create(&handle_), "cublasLtCreate");
  workspace_ = DeviceBuffer(workspace_bytes);
}

Linear::~Linear() {
  if (handle_ != nullptr) library_->destroy(handle_);
}

std::string Linear::describe() const {
  if (library_ == nullptr) return "no cuBLASLt";
  const size_t version = library_->version();
  return "cuBLASLt " + std::to_string(version / 10000) + "." + std::to_string(version % 10000 / 100) + ", " +
         library_->path;
}

const CublasLt::Heuristic &Linear::choose(const LinearArguments &a, bool fused_bias) {
  const int64_t tokens = bucket(a.tokens);
  const Key key{tokens, a.weight->n, a.weight->k, a.dtype, a.out_dtype, fused_bias};
  const auto known = chosen_.find(key);
  if (known != chosen_.end()) return known->second;
  const Product product(*library_, a, tokens, fused_bias);
  CublasLt::Preference preference = nullptr;
  require(library_->preference_create(&preference), "creating a preference");
  CublasLt::Heuristic best{};
  int found = 0;
  int status = library_->preference_set(preference, CublasLt::preference_workspace, &workspace_bytes,
                                        sizeof workspace_bytes);
  if (status == 0)
    status = library_->heuristics(handle_, product.descriptor, product.weight, product.x, product.out, product.out,
                                  preference, 1, &best, &found);
  library_->preference_destroy(preference);
  if (status != 0 || found == 0)
    fail("cuBLASLt has no algorithm for %lld x %lld x %lld (status %d)", static_cast<long long>(tokens),
         static_cast<long long>(a.weight->n), static_cast<long long>(a.weight->k), status);
  return chosen_.emplace(key, best).first->second;
}

void Linear::run(const LinearArguments &a) {
  if (library_ == nullptr) fail("%s", missing_.c_str());
  const bool fused_bias = a.bias != nullptr && a.dtype == a.out_dtype;
  const CublasLt::Heuristic &chosen = choose(a, fused_bias);
  const Product product(*library_, a, a.tokens, fused_bias);
  const float one = 1.f, kept = a.add ? 1.f : 0.f;
  require(library_->matmul(handle_, product.descriptor, &one, a.weight->memory.get(), product.weight, a.x, product.x,
                           &kept, a.out, product.out, a.out, product.out, &chosen.algorithm, workspace_.get(),
                           workspace_bytes, device_->stream),
          "the product");
  device_->stored_cache = nullptr;
  if (a.bias == nullptr || fused_bias) return;
  dispatch_half(a.dtype, [&](auto *type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t total = static_cast<int64_t>(a.tokens) * a.weight->n;
    launch(device_, Follow::dependent, add_bias_kernel<T>, static_cast<unsigned>(ceil_div(total, 256)), 256, 0,
           static_cast<float *>(a.out), static_cast<const T *>(a.bias), total, a.weight->n);
  });
}

}  // namespace minisgl

using namespace minisgl;

namespace {

/* Products that normalise multiply x by the norm's weight before they divide by the root: in float16, whose largest
 * number is 65,504, that could overflow. */
bool fuses_norm(int32_t dtype) { return dtype == MSGL_BF16; }

void enqueue_linear(msgl_device *device, const LinearArguments &a) {
  if (a.tokens == 0) return;
  if (a.dtype != a.weight->dtype) fail("linear: activations of dtype %d, weight of dtype %d", a.dtype, a.weight->dtype);
  if (a.out_dtype != a.dtype && a.out_dtype != MSGL_F32) fail("linear: the output is of dtype %d or float32", a.dtype);
  if (gemv_supports(device, a)) return enqueue_gemv(device, a);
  if (a.weight->n % 8 != 0 || a.weight->k % 8 != 0) return enqueue_any_linear(device, a);
  device->linear->run(a);
}

}  // namespace

int32_t msgl_linear(msgl_device *device, void *out, const void *x, const msgl_weight *weight, const void *bias,
                    int32_t tokens, int32_t dtype, int32_t out_dtype) {
  return on_device(device, [&] { enqueue_linear(device, {out, x, bias, weight, tokens, dtype, out_dtype}); });
}

int32_t msgl_linear_add(msgl_device *device, void *out, void *, const void *x, const msgl_weight *weight,
                        const void *bias, int32_t tokens, int32_t dtype) {
  return on_device(device, [&] { enqueue_linear(device, {out, x, bias, weight, tokens, dtype, dtype, true}); });
}

int32_t msgl_norm_linear(msgl_device *device, void *out, void *normed, const void *x, const void *norm,
                         const msgl_weight *weight, const void *bias, int32_t tokens, float epsilon, int32_t dtype,
                         int32_t out_dtype) {
  return on_device(device, [&] {
    LinearArguments a{out, x, bias, weight, tokens, dtype, out_dtype, false, norm, epsilon};
    if (fuses_norm(dtype) && gemv_supports(device, a)) return enqueue_gemv(device, a);
    enqueue_rms_norm(device, normed, x, norm, tokens, static_cast<int>(weight->k), epsilon, dtype);
    a.x = normed;
    a.norm = nullptr;
    enqueue_linear(device, a);
  });
}

int32_t msgl_norm_gated_linear(msgl_device *device, void *out, void *gate_up, void *normed, const void *x,
                               const void *norm, const msgl_weight *weight, int32_t tokens, float epsilon,
                               int32_t dtype) {
  return on_device(device, [&] {
    LinearArguments a{out, x, nullptr, weight, tokens, dtype, dtype, false, norm, epsilon, true};
    if (fuses_norm(dtype) && gemv_supports(device, a)) return enqueue_gemv(device, a);
    enqueue_rms_norm(device, normed, x, norm, tokens, static_cast<int>(weight->k), epsilon, dtype);
    a.x = normed;
    a.norm = nullptr;
    if (gemv_supports(device, a)) return enqueue_gemv(device, a);
    enqueue_linear(device, {gate_up, normed, nullptr, weight, tokens, dtype, dtype});
    enqueue_silu_mul(device, out, gate_up, tokens, static_cast<int>(weight->n / 2), dtype);
  });
}
