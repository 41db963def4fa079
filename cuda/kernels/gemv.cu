/*
 * gemv.cu: out[tokens, n] = x[tokens, k] W[n, k]^T for 1 to 16 tokens, as fast as W can be read. gemv.cuh tells how, and
 * what else a product can do on the way; the kernels are in gemv_once.cuh and gemv_stream.cuh.
 *
 * With programmatic dependent launch the copies of W start before the op that computes x has ended.
 */
#include <algorithm>

#include "chain.h"
#include "gemv_once.cuh"
#include "gemv_stream.cuh"
#include "linear.h"

namespace minisgl {
namespace {

using namespace gemv;

// Tokens of any product, and of one with a norm whose W does not stream: beyond, reading x in every block takes longer than
// a norm of its own or sums over a cluster (tiled.cu).
constexpr int most_tokens = 8, most_normed = 16;

/* How a shape is laid over the device. */
struct Plan {
  int slices, stages, grid;
  bool streams;  // through a ring; otherwise a block's whole share is on its way before the wait
};

/* Stages of a ring, as many as fit into shared memory beside x. */
constexpr int ring_stages(int slices, int tokens) { return tokens == 1 && slices <= 4 ? 3 : 2; }

Plan choose(const msgl_device *device, const LinearArguments &a) {
  const int slices = static_cast<int>(a.weight->n / slice_rows), unit = a.gated ? 2 : 1;
  const int a_warp = static_cast<int>(ceil_div(a.weight->k / chunk, warps));
  const int a_block = unit * static_cast<int>(ceil_div(slices / unit, device->multiprocessors));
  // At most 6 pieces of 16 KiB of W a block, so that the next kernel fits beside it on a multiprocessor.
  if (a_block * a_warp <= 6) return {a_block, a_warp, static_cast<int>(ceil_div(slices, a_block)), false};
  // A whole multiprocessor otherwise; four slices a group, or all of five or six at once.
  const int group = a.tokens == 1 && (a_block == 5 || a_block == 6) ? a_block : 4;
  return {group, ring_stages(group, a.tokens), std::min(slices / unit, device->multiprocessors), true};
}

template <int Value>
using Constant = std::integral_constant<int, Value>;

/* Calls f(kernel, shared memory) for a plan. */
template <class T, int Tokens, bool Gated, class F>
void dispatch_slices(const Plan &plan, bool norm, F f) {
  const auto stream = [&](auto slices) {
    constexpr int Slices = decltype(slices)::value, Stages = ring_stages(Slices, Tokens);
    f(stream_kernel<T, Slices, Tokens, Stages, Gated>, StreamLayout<Slices, Tokens>::bytes(Stages));
  };
  const auto once = [&](auto slices) {
    constexpr int Slices = decltype(slices)::value;
    f(once_kernel<T, Slices, Tokens, Gated>, OnceLayout<Slices, Tokens>::bytes(plan.stages, norm));
  };
  if constexpr (Tokens <= most_tokens) {
    if (plan.streams && plan.slices == 4) return stream(Constant<4>());
    if constexpr (Tokens == 1) {
      if (plan.streams && plan.slices == 6) return stream(Constant<6>());
      if constexpr (!Gated)
        if (plan.streams && plan.slices == 5) return stream(Constant<5>());
    }
  }
  if (plan.streams) fail("no kernel streams %d slices for %d tokens", plan.slices, Tokens);
  if (plan.slices == 2) return once(Constant<2>());
  if (plan.slices == 4) return once(Constant<4>());
  if (plan.slices == 6) return once(Constant<6>());
  if constexpr (!Gated) {
    if (plan.slices == 1) return once(Constant<1>());
    if (plan.slices == 3) return once(Constant<3>());
    if (plan.slices == 5) return once(Constant<5>());
  }
  fail("no kernel for %d slices", plan.slices);
}

template <class F>
void dispatch(const Plan &plan, const LinearArguments &a, F f) {
  dispatch_half(a.dtype, [&](auto *type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto call = [&](auto tokens) {
      constexpr int Tokens = decltype(tokens)::value;
      const bool norm = a.norm != nullptr;
      a.gated ? dispatch_slices<T, Tokens, true>(plan, norm, f) : dispatch_slices<T, Tokens, false>(plan, norm, f);
    };
    if (a.tokens == 1) return call(Constant<1>());
    a.tokens <= most_tokens ? call(Constant<most_tokens>()) : call(Constant<most_normed>());
  });
}

}  // namespace

bool gemv_supports(const msgl_device *device, const LinearArguments &a) {
  if (a.weight->n % (a.gated ? 2 * slice_rows : slice_rows) != 0) return false;
  if (a.weight->k % chunk != 0 || reinterpret_cast<uintptr_t>(a.x) % 16 != 0) return false;
  const Plan plan = choose(device, a);
  if (a.tokens > (plan.streams || a.norm == nullptr ? most_tokens : most_normed)) return false;
  bool fits = false;
  dispatch(plan, a, [&](auto, size_t bytes) { fits = bytes <= static_cast<size_t>(device->shared_per_block); });
  return fits;
}

void enqueue_gemv(msgl_device *device, const LinearArguments &a) {
  const Plan plan = choose(device, a);
  const Gemv gemv{a.out,
                  a.x,
                  a.weight->memory.get(),
                  a.bias,
                  a.norm,
                  a.weight->k,
                  static_cast<int>(a.gated ? a.weight->n / 2 : a.weight->n),
                  static_cast<int>(a.weight->n / slice_rows),
                  static_cast<int>(a.weight->k / chunk),
                  a.tokens,
                  plan.stages,
                  a.epsilon,
                  a.out_dtype == MSGL_F32,
                  a.add};
  dispatch(plan, a, [&](auto kernel, size_t bytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "shared memory");
    prefer_shared_memory(kernel);
    launch_in_chain(device, kernel, plan.grid, threads, bytes, gemv);
  });
}

}  // namespace minisgl
