// The device's thread, its events and its graphs.
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <random>

#include "device.h"

namespace {

thread_local std::string last_error;

std::string format_text(const char *format, va_list arguments) {
  char text[512];
  std::vsnprintf(text, sizeof text, format, arguments);
  return text;
}

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

namespace msgl {

int32_t fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  last_error = format_text(format, arguments);
  va_end(arguments);
  return 1;
}

std::runtime_error error(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::runtime_error result(format_text(format, arguments));
  va_end(arguments);
  return result;
}

}  // namespace msgl

msgl_device::msgl_device(int threads, int32_t flags)
    : pool(threads), loader(pool.size()), delay_((flags & MSGL_DEBUG_DELAY) != 0), thread_(&msgl_device::run, this) {}

msgl_device::~msgl_device() {
  loader.stop();
  push(msgl::Closure([](msgl_device &device) { device.stop_ = true; }));
  thread_.join();
  for (msgl::Owned *handle : owned_) delete handle;
  for (auto &[pointer, bytes] : memory) std::free(pointer);
}

void msgl_device::push(const msgl::Closure &op) {
  const uint32_t tail = tail_.load(std::memory_order_relaxed);
  while (tail - head_.load(std::memory_order_acquire) == kSlots) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  ring_[tail % kSlots] = op;
  // Sequentially consistent: notify_one looks for sleepers after this store, a sleeper for this store before it sleeps.
  tail_.store(tail + 1, std::memory_order_seq_cst);
  tail_.notify_one();
}

void msgl_device::run() {
  std::minstd_rand random(std::random_device{}());
  for (uint32_t head = 0; !stop_; ++head) {
    while (tail_.load(std::memory_order_seq_cst) == head) tail_.wait(head, std::memory_order_seq_cst);
    if (delay_ && random() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 1000));
    try {
      ring_[head % kSlots](*this);
    } catch (const std::exception &error) {
      keep_error(error.what());
    }
    head_.store(head + 1, std::memory_order_release);
  }
}

void msgl_device::drain() {
  const uint32_t before = drained_.load(std::memory_order_relaxed);
  push(msgl::Closure([](msgl_device &device) {
    device.drained_.fetch_add(1, std::memory_order_seq_cst);
    device.drained_.notify_one();
  }));
  drained_.wait(before, std::memory_order_seq_cst);
}

void msgl_device::keep_error(const char *text) {
  std::lock_guard lock(error_mutex_);
  if (error_.empty()) error_ = text;
}

int32_t msgl_device::take_error() {
  std::lock_guard lock(error_mutex_);
  if (error_.empty()) return 0;
  const int32_t status = msgl::fail("%s", error_.c_str());
  error_.clear();
  return status;
}

void msgl_device::release(msgl::Owned *handle) {
  owned_.erase(handle);
  push(msgl::Closure([handle](msgl_device &) { delete handle; }));
}

using namespace msgl;

MSGL_EXPORT const char *msgl_last_error(void) { return last_error.c_str(); }

MSGL_EXPORT int32_t msgl_device_synchronize(msgl_device *device) {
  if (device->capture) return fail("cannot wait for the device while a graph is captured");
  device->drain();
  return device->take_error();
}

MSGL_EXPORT int32_t msgl_event_create(msgl_device *device, msgl_event **event) {
  return guard([&] {
    *event = device->adopt(std::make_unique<msgl_event>(*device));
    return 0;
  });
}

MSGL_EXPORT int32_t msgl_event_destroy(msgl_device *device, msgl_event *event) {
  device->release(event);
  return 0;
}

MSGL_EXPORT int32_t msgl_event_record(msgl_device *device, msgl_event *event) {
  if (device->capture) return fail("cannot record an event while a graph is captured");
  const uint32_t count = event->recorded.load(std::memory_order_relaxed) + 1;
  event->recorded.store(count, std::memory_order_release);
  device->push(Closure([event, count](msgl_device &) {
    event->nanoseconds.store(now(), std::memory_order_relaxed);
    event->reached.store(count, std::memory_order_seq_cst);
    event->reached.notify_all();
  }));
  return 0;
}

MSGL_EXPORT int32_t msgl_event_query(msgl_event *event, int32_t *done) {
  *done = event->reached.load(std::memory_order_acquire) == event->recorded.load(std::memory_order_acquire);
  return 0;
}

MSGL_EXPORT int32_t msgl_event_synchronize(msgl_event *event) {
  const uint32_t recorded = event->recorded.load(std::memory_order_acquire);
  for (;;) {
    const uint32_t reached = event->reached.load(std::memory_order_seq_cst);
    if (static_cast<int32_t>(reached - recorded) >= 0) break;
    event->reached.wait(reached, std::memory_order_seq_cst);
  }
  return event->device->take_error();
}

MSGL_EXPORT int32_t msgl_event_elapsed(const msgl_event *begin, const msgl_event *end, float *milliseconds) {
  if (begin->reached == 0 || end->reached == 0) return fail("the events have not been reached");
  *milliseconds = static_cast<float>(static_cast<double>(end->nanoseconds - begin->nanoseconds) * 1e-6);
  return 0;
}

MSGL_EXPORT int32_t msgl_capture_begin(msgl_device *device) {
  if (device->capture) return fail("a graph is already being captured");
  return guard([&] {
    device->capture = std::make_unique<msgl_graph>(*device);
    return 0;
  });
}

MSGL_EXPORT int32_t msgl_capture_end(msgl_device *device, msgl_graph **graph) {
  if (!device->capture) return fail("no graph is being captured");
  return guard([&] {
    *graph = device->adopt(std::move(device->capture));
    return 0;
  });
}

MSGL_EXPORT int32_t msgl_graph_launch(msgl_device *device, msgl_graph *graph) {
  return enqueue(device, [graph](msgl_device &target) {
    for (const Closure &op : graph->ops) op(target);
  });
}

MSGL_EXPORT int32_t msgl_graph_destroy(msgl_device *device, msgl_graph *graph) {
  device->release(graph);
  return 0;
}

MSGL_EXPORT int32_t msgl_range_push(const char *name) { return 0; }

MSGL_EXPORT int32_t msgl_range_pop(void) { return 0; }
