/*
 * chain.h: how far ahead attention may read in the chain of kernels that a decode step is:
 *
 *   ... product | rotary store | attention | product | product, gated | product | rotary store | attention | ...
 *
 * with norms and SiLU between them where the products do not include these.
 *
 * Once an ordinary kernel (vector.cuh) of this step has passed, everything before it has ended, and of what follows in such
 * a chain only a layer's own rotary store writes what its attention reads: one row of K and V, and q. All else, which is
 * earlier tokens, page tables and the schedule, may be read before the wait. The device's stored_cache says what the op
 * before was:
 *   a cache      msgl_rotary_store into this one
 *   the device   part of a settled chain: an ordinary rotary store has passed, and since then only such ops
 *   null         anything else
 */
#ifndef MINISGL_CHAIN_H
#define MINISGL_CHAIN_H

#include "device.h"

namespace minisgl {

inline bool chain_settled(const msgl_device *device) { return device->stored_cache == device; }

/* To be called after an op of such a chain was launched, with what chain_settled said before. */
inline void chain_continue(msgl_device *device, bool settled) { device->stored_cache = settled ? device : nullptr; }

/* Launches an op of such a chain that changes nothing of what attention reads. */
template <class... Parameters, class... Arguments>
void launch_in_chain(msgl_device *device, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                     Arguments... arguments) {
  const bool settled = chain_settled(device);
  launch(device, Follow::dependent, kernel, grid, block, shared_bytes, arguments...);
  chain_continue(device, settled);
}

/* Has a multiprocessor's memory divided as the other kernels of the chain have it, so that they can share one: it can only
 * be divided anew when nothing runs there. */
template <class Kernel>
void prefer_shared_memory(Kernel kernel) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        "shared memory");
}

}  // namespace minisgl

#endif
