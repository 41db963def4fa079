// The CPU device. It behaves like a GPU: ops are copied into a ring and one thread of the device runs them in order.
// Read this file, then stream.cpp (the thread, events, graphs), memory.cpp and loading.cpp; the other files are ops.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <queue>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "minisgl.h"
#include "pool.h"

#define MSGL_EXPORT extern "C" __attribute__((visibility("default")))

namespace msgl {

/// Sets the calling thread's error text and returns the status that goes with it.
__attribute__((format(printf, 1, 2))) int32_t fail(const char *format, ...);

/// Runs body() -> int32_t at the C boundary and turns an exception into a status.
template <class F>
int32_t guard(F &&body) {
  try {
    return body();
  } catch (const std::bad_alloc &) {
    return fail("out of host memory");
  } catch (const std::exception &error) {
    return fail("%s", error.what());
  }
}

/// Formats like printf into the exception that an op or a load throws.
__attribute__((format(printf, 1, 2))) std::runtime_error error(const char *format, ...);

/// An op with its captures, kept without an allocation.
class Closure {
 public:
  Closure() = default;

  template <class Op>
  explicit Closure(const Op &op)
      : call_([](const void *captures, msgl_device &device) { (*static_cast<const Op *>(captures))(device); }) {
    static_assert(std::is_trivially_copyable_v<Op>, "ops capture scalars and pointers");
    static_assert(sizeof(Op) <= sizeof captures_ && alignof(Op) <= 8);
    std::memcpy(captures_, &op, sizeof op);
  }

  void operator()(msgl_device &device) const { call_(captures_, device); }

 private:
  void (*call_)(const void *, msgl_device &) = nullptr;
  alignas(8) std::byte captures_[120];
};

/// What a device owns until it is destroyed by name or with the device: weights, plans, events, graphs.
struct Owned {
  explicit Owned(msgl_device &owner) : device(&owner) {}
  virtual ~Owned() = default;
  msgl_device *device;
};

/// Reads files into memory beside the stream, on threads that exist from the first load on.
class Loader {
 public:
  explicit Loader(int threads) : threads_(threads) {}
  ~Loader() { stop(); }
  void add(std::function<void()> job, int64_t bytes);
  /// Waits until no load is left, at most so long; throws the first error that a load met since the last call.
  bool wait(int64_t *bytes, int32_t timeout_ms);
  /// Gives up what is queued and waits for what is being read: it writes to memory that is about to be freed.
  void stop();

 private:
  void work();

  const int threads_;
  std::mutex mutex_;
  std::condition_variable added_, finished_;
  std::queue<std::pair<std::function<void()>, int64_t>> jobs_;
  int64_t pending_ = 0, bytes_ = 0;
  bool stop_ = false;
  std::string error_;
  std::vector<std::thread> workers_;
};

}  // namespace msgl

struct msgl_graph : msgl::Owned {
  using Owned::Owned;
  std::vector<msgl::Closure> ops;
};

struct msgl_event : msgl::Owned {
  using Owned::Owned;
  std::atomic<uint32_t> recorded{0}, reached{0};
  std::atomic<int64_t> nanoseconds{0};
};

struct msgl_file {
  int descriptor;
  int64_t bytes;
  std::string path;

  /// Reads exactly so many bytes; throws where the file ends before.
  void read(void *destination, int64_t offset, int64_t count) const;
};

struct msgl_device {
  msgl_device(int threads, int32_t flags);
  ~msgl_device();

  msgl::ThreadPool pool;
  msgl::Loader loader;

  /// Appends the op to the stream, whether or not a graph is being captured.
  void push(const msgl::Closure &op);
  /// Waits until everything pushed has run.
  void drain();
  /// Keeps the error that the next waiting call returns, if it is the first.
  void keep_error(const char *text);
  /// 0, or the status of the kept error, which it clears.
  int32_t take_error();

  /// Registers a handle, so that closing the device deletes it.
  template <class T>
  T *adopt(std::unique_ptr<T> handle) {
    owned_.insert(handle.get());
    return handle.release();
  }
  /// Deletes a handle in stream order.
  void release(msgl::Owned *handle);

  /// The graph that is being captured.
  std::unique_ptr<msgl_graph> capture;
  /// Device and host memory by address, in bytes.
  std::unordered_map<void *, int64_t> memory;

 private:
  void run();

  static constexpr uint32_t kSlots = 2048;
  std::unordered_set<msgl::Owned *> owned_;
  std::unique_ptr<msgl::Closure[]> ring_{new msgl::Closure[kSlots]};
  alignas(64) std::atomic<uint32_t> head_{0};  // next op to run
  alignas(64) std::atomic<uint32_t> tail_{0};  // next free slot
  std::atomic<uint32_t> drained_{0};
  bool stop_ = false;  // of the device thread
  const bool delay_;
  std::mutex error_mutex_;
  std::string error_;
  std::thread thread_;
};

namespace msgl {

/// Runs op(msgl_device &) in stream order, or appends it to the graph that is being captured. op captures by value.
template <class Op>
int32_t enqueue(msgl_device *device, const Op &op) {
  if (device->capture) {
    device->capture->ops.emplace_back(op);
  } else {
    device->push(Closure(op));
  }
  return 0;
}

/// Queues a load. job throws where it fails; bytes: of the file, for msgl_load_wait.
inline void enqueue_load(msgl_device *device, std::function<void()> job, int64_t bytes) {
  device->loader.add(std::move(job), bytes);
}

/// Memory aligned to 256 bytes, on huge pages where it is large; throws bad_alloc. Give back with std::free.
void *allocate(int64_t bytes);
/// Bytes that the machine, or the control group the process runs in, has and has left.
int64_t total_memory();
int64_t free_memory();

}  // namespace msgl
