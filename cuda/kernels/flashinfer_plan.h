/* flashinfer_plan.h: what FlashInfer's attention kernels are seen as; attention.h tells where they are used. */
#ifndef MINISGL_FLASHINFER_PLAN_H
#define MINISGL_FLASHINFER_PLAN_H

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "device.h"

namespace minisgl {

/* What a launch works on. The arrays on the device begin at the launch's first sequence, q and out at its first row. */
struct AttentionArguments {
  void *out;
  const void *q, *k_cache, *v_cache;
  const int32_t *query_begin, *page_begin, *pages, *last_page_length;
  int32_t sequences, tokens;
  int32_t heads, kv_heads, head_dim, page_size;
  float scale;
};

/* A ring of pinned buffers, so that a plan is written while the copies of earlier ones are still to run. */
class PinnedRing {
 public:
  explicit PinnedRing(size_t bytes);
  ~PinnedRing();
  PinnedRing(const PinnedRing &) = delete;
  PinnedRing &operator=(const PinnedRing &) = delete;
  /* The next buffer; waits until the copy that used it last has run. */
  void *acquire();
  /* To be called after the copies that read the acquired buffer were enqueued. */
  void release(cudaStream_t stream);

 private:
  static constexpr int slots = 4;
  char *memory_ = nullptr;
  size_t bytes_;
  cudaEvent_t events_[slots] = {};
  int next_ = 0;
};

/* Host arrays that FlashInfer's plans are made from; prefix sums count rows and pages. */
struct HostLengths {
  std::vector<int32_t> query_begin, page_begin, context;
};

/* A plan and its workspaces; made by plan() on the host, read by run() on the device. */
class FlashInferPlan {
 public:
  virtual ~FlashInferPlan() = default;
  /* graph: the schedule's layout depends on the number of sequences alone, all of query length 1. */
  virtual void update(msgl_device *device, HostLengths &lengths, bool graph) = 0;
  virtual void run(msgl_device *device, const AttentionArguments &arguments) const = 0;
};

struct AttentionShape {
  int heads, kv_heads, head_dim, page_size, max_sequences, max_tokens;
};

/* One instance a dtype and head_dim (64, 128, 256), each in an object file of its own. */
template <class T, int HeadDim>
std::unique_ptr<FlashInferPlan> make_fa2_plan(const msgl_device *device, const AttentionShape &shape);
template <class T, int HeadDim>
std::unique_ptr<FlashInferPlan> make_sm90_plan(const msgl_device *device, const AttentionShape &shape);

}  // namespace minisgl

#endif
