// Files, and the queue of loads that run beside the stream.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "device.h"
#include "elementwise.h"

namespace msgl {

void Loader::stop() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  added_.notify_all();
  for (std::thread &worker : workers_) worker.join();
  workers_.clear();
}

void Loader::add(std::function<void()> job, int64_t bytes) {
  {
    std::lock_guard lock(mutex_);
    while (static_cast<int>(workers_.size()) < threads_) workers_.emplace_back(&Loader::work, this);
    jobs_.emplace(std::move(job), bytes);
    ++pending_;
  }
  added_.notify_one();
}

bool Loader::wait(int64_t *bytes, int32_t timeout_ms) {
  std::unique_lock lock(mutex_);
  const bool done = finished_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return pending_ == 0; });
  *bytes = bytes_;
  if (error_.empty()) return done;
  const std::runtime_error first(error_);
  error_.clear();
  throw first;
}

void Loader::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    added_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
    if (stop_) return;
    const auto [job, bytes] = std::move(jobs_.front());
    jobs_.pop();
    lock.unlock();
    std::string text;
    try {
      job();
    } catch (const std::exception &failure) {
      text = failure.what();
    }
    lock.lock();
    if (error_.empty()) error_ = text;
    bytes_ += bytes;
    if (--pending_ == 0) finished_.notify_all();
  }
}

}  // namespace msgl

void msgl_file::read(void *destination, int64_t offset, int64_t count) const {
  if (offset < 0 || count < 0 || offset > bytes - count) {
    throw msgl::error("%s: %lld bytes at %lld lie beyond its end at %lld", path.c_str(), static_cast<long long>(count),
                      static_cast<long long>(offset), static_cast<long long>(bytes));
  }
  char *to = static_cast<char *>(destination);
  while (count > 0) {
    const ssize_t got = pread(descriptor, to, count, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw msgl::error("%s: %s", path.c_str(), got < 0 ? std::strerror(errno) : "it became shorter");
    to += got;
    offset += got;
    count -= got;
  }
}

using namespace msgl;

MSGL_EXPORT int32_t msgl_file_open(msgl_file **file, const char *path) {
  return guard([&]() -> int32_t {
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return fail("cannot open %s: %s", path, std::strerror(errno));
    struct stat status;
    if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
      close(descriptor);
      return fail("%s is not a file", path);
    }
    *file = new msgl_file{descriptor, status.st_size, path};
    return 0;
  });
}

MSGL_EXPORT int32_t msgl_file_close(msgl_file *file) {
  close(file->descriptor);
  delete file;
  return 0;
}

MSGL_EXPORT int32_t msgl_load(msgl_device *device, void *destination, int32_t destination_dtype, msgl_file *file,
                              int64_t offset, int64_t count, int32_t dtype) {
  const bool integers = dtype == MSGL_I32 && destination_dtype == MSGL_I32;
  const auto is_float = [](int32_t type) { return type >= MSGL_F32 && type <= MSGL_BF16; };
  if (!integers && !(is_float(dtype) && is_float(destination_dtype))) {
    return fail("cannot load values of dtype %d as dtype %d", dtype, destination_dtype);
  }
  const int64_t size = dtype == MSGL_F16 || dtype == MSGL_BF16 ? 2 : 4;
  const int64_t step = destination_dtype == MSGL_F16 || destination_dtype == MSGL_BF16 ? 2 : 4;
  const auto job = [=] {
    if (dtype == destination_dtype) return file->read(destination, offset, count * size);
    constexpr int64_t kChunk = 65536;
    std::vector<char> raw(kChunk * size);
    std::vector<float> floats(kChunk);
    for (int64_t from = 0; from < count; from += kChunk) {
      const int64_t values = std::min(kChunk, count - from);
      file->read(raw.data(), offset + from * size, values * size);
      MSGL_PICK(to_floats)(floats.data(), raw.data(), dtype, values);
      MSGL_PICK(from_floats)(static_cast<char *>(destination) + from * step, destination_dtype, floats.data(), values);
    }
  };
  return guard([&] {
    enqueue_load(device, job, count * size);
    return 0;
  });
}

MSGL_EXPORT int32_t msgl_load_wait(msgl_device *device, int64_t *bytes, int32_t *done, int32_t timeout_ms) {
  return guard([&] {
    *done = device->loader.wait(bytes, timeout_ms);
    return 0;
  });
}
