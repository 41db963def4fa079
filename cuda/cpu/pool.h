// The threads that compute: the caller of run() and its helpers share the indices of one parallel region at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace msgl {

class ThreadPool {
 public:
  /// `threads` computing threads, the caller of run() among them; 0 or less: as many as the machine has.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  int size() const { return static_cast<int>(helpers_.size()) + 1; }

  /// Calls body(int64_t index) once for each index in 0 .. count - 1, on any of the threads, and returns when all are
  /// done. Indices are handed out one by one in ascending order: give out a few per thread, not thousands. body must
  /// not throw and must not call run(). One caller at a time.
  template <class F>
  void run(int64_t count, F &&body) {
    if (count <= 1 || helpers_.empty()) {
      for (int64_t index = 0; index < count; ++index) body(index);
      return;
    }
    using Body = std::remove_reference_t<F>;
    const auto call = [](const void *context, int64_t index) {
      (*static_cast<Body *>(const_cast<void *>(context)))(index);
    };
    dispatch(count, call, &body);
  }

 private:
  using Task = void (*)(const void *context, int64_t index);

  void dispatch(int64_t count, Task task, const void *context);
  void help();
  bool work();

  // The region. Written only while no index is left to claim, read only by who has claimed one.
  Task task_ = nullptr;
  const void *context_ = nullptr;
  int64_t count_ = 0;
  alignas(64) std::atomic<int64_t> unclaimed_{0};
  alignas(64) std::atomic<int64_t> unfinished_{0};

  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> helpers_;
};

}  // namespace msgl
