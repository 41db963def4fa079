/*
 * linear.cu: out[tokens, n] = x[tokens, k] weight[n, k]^T + bias through cuBLASLt, which thinks in columns:
 *
 *   out^T [n, tokens] = op(W) [n, k]  x^T [k, tokens]      W = the weight's memory as a column-major [k, n], transposed
 */
#include "chain.h"
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

/* Whether cuBLASLt adds the bias: it wants one of the output's type. */
bool fuses_bias(const LinearArguments &a) { return a.bias != nullptr && a.dtype == a.out_dtype; }

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

std::vector<Algorithm> Linear::heuristics(const LinearArguments &a, int most) const {
  if (library_ == nullptr) fail("cuBLASLt %s", missing_.c_str());
  const Product product(*library_, a, a.tokens, fuses_bias(a));
  CublasLt::Preference preference = nullptr;
  require(library_->preference_create(&preference), "creating a preference");
  std::vector<CublasLt::Heuristic> results(most);
  int found = 0;
  int status = library_->preference_set(preference, CublasLt::preference_workspace, &workspace_bytes,
                                        sizeof workspace_bytes);
  if (status == 0)
    status = library_->heuristics(handle_, product.descriptor, product.weight, product.x, product.out, product.out,
                                  preference, most, results.data(), &found);
  library_->preference_destroy(preference);
  if (status != 0 || found == 0)
    fail("cuBLASLt has no algorithm for %d x %lld x %lld (status %d)", a.tokens, static_cast<long long>(a.weight->n),
         static_cast<long long>(a.weight->k), status);
  std::vector<Algorithm> algorithms(found);
  for (int i = 0; i < found; i++) {
    algorithms[i].tiled = false;
    for (int attribute = 0; attribute < CublasLt::config_size; attribute++) {
      int32_t value = 0;
      size_t written;
      status = library_->algorithm_get(&results[i].algorithm, attribute, &value, CublasLt::config_bytes[attribute],
                                       &written);
      algorithms[i].config[attribute] = status == 0 ? value : -1;
    }
  }
  return algorithms;
}

bool Linear::accept(const Algorithm &algorithm, const LinearArguments &a, LinearChoice *choice) const {
  *choice = {algorithm.tiled, algorithm.plan, {}};
  if (algorithm.tiled) return tiled_supports(device_, a);
  if (library_ == nullptr) return false;
  const cudaDataType in = data_type(a.dtype), out = data_type(a.out_dtype);
  if (library_->algorithm_init(handle_, CublasLt::compute_32f, CUDA_R_32F, in, in, out, out, algorithm.config[0],
                               &choice->algorithm) != 0)
    return false;
  for (int attribute = 1; attribute < CublasLt::config_size; attribute++) {
    const int32_t value = algorithm.config[attribute];
    const size_t bytes = CublasLt::config_bytes[attribute];
    if (value >= 0 && library_->algorithm_set(&choice->algorithm, attribute, &value, bytes) != 0) return false;
  }
  const Product product(*library_, a, a.tokens, fuses_bias(a));
  CublasLt::Heuristic result{};
  return library_->algorithm_check(handle_, product.descriptor, product.weight, product.x, product.out, product.out,
                                   &choice->algorithm, &result) == 0 &&
         result.workspace_bytes <= workspace_bytes;
}

void Linear::learn(const std::vector<Tuned> &entries) {
  for (const Tuned &entry : entries) table_.add(entry);
  chosen_.clear();
}

/* The table's algorithm, else our kernel where it has a plan, else the one that cuBLASLt thinks best. */
LinearChoice Linear::find(const LinearArguments &a) const {
  LinearChoice choice;
  const Algorithm *known = table_.find(a.shape());
  if (known != nullptr && accept(*known, a, &choice)) return choice;
  const auto plan = default_plan(a.shape(), device_->multiprocessors);
  if (plan && accept({true, *plan, {}}, a, &choice)) return choice;
  if (!accept(heuristics(a, 1)[0], a, &choice)) fail("cuBLASLt refuses its own algorithm");
  return choice;
}

const LinearChoice &Linear::choose(const LinearArguments &a) {
  const Key key{bucket(a.tokens), a.weight->n, a.weight->k, a.dtype, a.out_dtype, a.form(), fuses_bias(a)};
  const auto known = chosen_.find(key);
  if (known != chosen_.end()) return known->second;
  LinearArguments rounded = a;
  rounded.tokens = static_cast<int>(bucket(a.tokens));
  return chosen_.emplace(key, find(rounded)).first->second;
}

void Linear::run(const LinearArguments &a, const LinearChoice &choice) {
  const bool settled = chain_settled(device_);
  if (choice.tiled) {
    enqueue_tiled(device_, a, choice.plan);
    return chain_continue(device_, settled);
  }
  const Product product(*library_, a, a.tokens, fuses_bias(a));
  const float one = 1.f, kept = a.add ? 1.f : 0.f;
  require(library_->matmul(handle_, product.descriptor, &one, a.weight->memory.get(), product.weight, a.x, product.x,
                           &kept, a.out, product.out, a.out, product.out, &choice.algorithm, workspace_.get(),
                           workspace_bytes, device_->stream),
          "the product");
  chain_continue(device_, settled);
  if (a.bias == nullptr || fuses_bias(a)) return;
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
  device->linear->run(a, device->linear->choose(a));
}

/* The plain product of a gated one. */
void enqueue_gate_up(msgl_device *device, LinearArguments a, void *gate_up) {
  a.out = gate_up;
  a.gated = false;
  enqueue_linear(device, a);
}

/* Whether a gated product is one kernel. */
bool fuses_gate(msgl_device *device, const LinearArguments &a) {
  if (gemv_supports(device, a)) return true;
  return tiled_supports(device, a) && device->linear->choose(a).tiled;
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
    if (tokens == 0 || fuses_gate(device, a)) return enqueue_linear(device, a);
    enqueue_gate_up(device, a, gate_up);
    enqueue_silu_mul(device, out, gate_up, tokens, static_cast<int>(weight->n / 2), dtype);
  });
}
