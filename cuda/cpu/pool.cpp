#include "pool.h"

#include <chrono>

namespace msgl {

namespace {

// A decode step has some hundred regions a few microseconds apart: helpers that slept between them would cost more
// than the work. Past this time the step is over and the core belongs to others.
constexpr auto kSpin = std::chrono::microseconds(50);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Polls until ready() or the spin time is over; says whether it was ready.
template <class Ready>
bool spin(Ready ready) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads <= 0) threads = static_cast<int>(std::thread::hardware_concurrency());
  for (int i = 1; i < threads; ++i) helpers_.emplace_back([this] { help(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto &helper : helpers_) helper.join();
}

// Claims and runs indices until none is left; says whether it got any.
bool ThreadPool::work() {
  bool any = false;
  while (unclaimed_.load(std::memory_order_relaxed) > 0) {
    const int64_t left = unclaimed_.fetch_sub(1, std::memory_order_acq_rel);
    if (left <= 0) break;  // a store of the next region overwrites what was taken too much
    any = true;
    task_(context_, count_ - left);
    unfinished_.fetch_sub(1, std::memory_order_acq_rel);
  }
  return any;
}

void ThreadPool::dispatch(int64_t count, Task task, const void *context) {
  task_ = task;
  context_ = context;
  count_ = count;
  unfinished_.store(count, std::memory_order_relaxed);
  unclaimed_.store(count, std::memory_order_seq_cst);
  // Sequentially consistent with help(): either this sees the sleeper or the sleeper sees the work.
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  work();
  const auto finished = [this] { return unfinished_.load(std::memory_order_acquire) == 0; };
  if (spin(finished)) return;
  while (!finished()) std::this_thread::yield();  // a helper lost its core: perhaps to this thread
}

void ThreadPool::help() {
  const auto wanted = [this] { return unclaimed_.load(std::memory_order_seq_cst) > 0 || stop_.load(); };
  while (!stop_.load()) {
    if (work() || spin(wanted)) continue;
    std::unique_lock lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, wanted);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }
}

}  // namespace msgl
