// Memory: what the device has, and the ops on plain bytes.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "../philox.h"
#include "device.h"
#include "elementwise.h"
#include "isa.h"

namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

/// The value in bytes of a line "NAME: value kB" of /proc/meminfo.
int64_t meminfo(const char *name) {
  std::ifstream file("/proc/meminfo");
  const std::string wanted = std::string(name) + ":";
  for (std::string key, rest; file >> key; std::getline(file, rest)) {
    int64_t kilobytes = 0;
    if (key == wanted && file >> kilobytes) return kilobytes * 1024;
  }
  return 0;
}

/// The number in a file that holds one, or -1 ("max", or no such file).
int64_t number_in(const std::string &path) {
  std::ifstream file(path);
  int64_t value = -1;
  return file >> value ? value : -1;
}

int64_t field_in(const std::string &path, const char *name) {
  std::ifstream file(path);
  int64_t value = 0;
  for (std::string key; file >> key >> value;) {
    if (key == name) return value;
  }
  return 0;
}

struct Room {
  int64_t total, free;
};

/// Narrows `room` by a control group's limit. Page cache that can be dropped counts as free.
void narrow(Room &room, const std::string &group, const char *limit_file, const char *usage_file, const char *cache) {
  const int64_t limit = number_in(group + limit_file), usage = number_in(group + usage_file);
  if (limit < 0 || usage < 0 || limit >= room.total) return;
  room.total = limit;
  room.free = std::min(room.free, std::max<int64_t>(0, limit - usage + field_in(group + "/memory.stat", cache)));
}

/// The machine's memory within the limits of the process's control groups (version 2 and 1) and their parents.
Room measure() {
  Room room{meminfo("MemTotal"), meminfo("MemAvailable")};
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const bool unified = second == first + 1;
    if (!unified && line.substr(first + 1, second - first - 1) != "memory") continue;
    const std::string root = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
      if (path == "/") path.clear();
      if (unified) {
        narrow(room, root + path, "/memory.max", "/memory.current", "inactive_file");
      } else {
        narrow(room, root + path, "/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_inactive_file");
      }
      if (path.find('/') == std::string::npos) break;
    }
  }
  return room;
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "CPU";
}

/// Memory and its place in the device's register.
void *reserve(msgl_device *device, int64_t bytes) {
  void *pointer = msgl::allocate(bytes);
  device->memory[pointer] = bytes;
  return pointer;
}

/// Takes the pages of a large block before it is used, as a GPU would; else the process would seem to leak until all of
/// a KV pool has been used once. Loads may be writing there already, so nothing is changed.
void commit(msgl_device *device, void *pointer, int64_t bytes) {
  if (bytes < kHugePage) return;
  device->push(msgl::Closure([=](msgl_device &target) {
    constexpr int64_t kChunk = 16 * kHugePage, kPage = 4096;
    target.pool.run((bytes + kChunk - 1) / kChunk, [&](int64_t chunk) {
      const int64_t end = std::min(bytes, (chunk + 1) * kChunk);
      for (int64_t at = chunk * kChunk; at < end; at += kPage) {
        __atomic_fetch_or(static_cast<char *>(pointer) + at, 0, __ATOMIC_RELAXED);
      }
    });
  }));
}

int32_t give_back(msgl_device *device, void *pointer) {
  if (pointer == nullptr) return 0;
  if (device->memory.erase(pointer) == 0) return msgl::fail("%p is not memory of this device", pointer);
  device->push(msgl::Closure([pointer](msgl_device &) { std::free(pointer); }));
  return 0;
}

}  // namespace

namespace msgl {

int64_t total_memory() { return measure().total; }

int64_t free_memory() { return measure().free; }

void *allocate(int64_t bytes) {
  const int64_t alignment = bytes >= kHugePage ? kHugePage : 256;
  const int64_t rounded = (std::max<int64_t>(bytes, 1) + alignment - 1) / alignment * alignment;
  void *pointer = std::aligned_alloc(alignment, rounded);
  if (pointer == nullptr) throw std::bad_alloc();
  if (bytes >= kHugePage) madvise(pointer, rounded, MADV_HUGEPAGE);
  return pointer;
}

}  // namespace msgl

using namespace msgl;

MSGL_EXPORT int32_t msgl_device_count(int32_t *count) {
  *count = 1;
  return 0;
}

MSGL_EXPORT int32_t msgl_device_open(msgl_device **device, int32_t index, int32_t threads, int32_t flags) {
  if (index != 0) return fail("there is no CPU device %d, only 0", index);
  return guard([&] {
    *device = new msgl_device(threads, flags);
    return 0;
  });
}

MSGL_EXPORT int32_t msgl_device_close(msgl_device *device) {
  delete device;
  return 0;
}

MSGL_EXPORT int32_t msgl_device_properties(msgl_device *device, msgl_properties *properties) {
  return guard([&] {
    *properties = {};
    std::snprintf(properties->name, sizeof properties->name, "%s", processor_name().c_str());
    std::snprintf(properties->library, sizeof properties->library, "cpu (%s)", isa_name());
    const Room room = measure();
    properties->total_memory = room.total;
    properties->free_memory = room.free;
    properties->compute_units = device->pool.size();
    properties->dtypes = 1 << MSGL_F32 | 1 << MSGL_F16 | 1 << MSGL_BF16;
    properties->weight_dtypes =
        properties->dtypes | 1 << MSGL_Q8_0 | 1 << MSGL_Q4_0 | 1 << MSGL_Q4_1 | 1 << MSGL_Q4_K | 1 << MSGL_Q6_K;
    properties->float_activations = 1;
    properties->asynchronous = 1;
    return 0;
  });
}

MSGL_EXPORT int32_t msgl_alloc(msgl_device *device, void **pointer, int64_t bytes) {
  return guard([&]() -> int32_t {
    // Pages are only taken when they are written, so malloc alone would promise what is not there.
    if (bytes < 0 || (bytes > 16 * kHugePage && bytes > free_memory())) {
      return fail("cannot allocate %lld bytes: %lld are free", static_cast<long long>(bytes),
                  static_cast<long long>(free_memory()));
    }
    *pointer = reserve(device, bytes);
    commit(device, *pointer, bytes);
    return 0;
  });
}

MSGL_EXPORT int32_t msgl_free(msgl_device *device, void *pointer) { return give_back(device, pointer); }

MSGL_EXPORT int32_t msgl_host_alloc(msgl_device *device, void **pointer, int64_t bytes) {
  return guard([&] {
    *pointer = reserve(device, bytes);
    std::memset(*pointer, 0, bytes);
    return 0;
  });
}

MSGL_EXPORT int32_t msgl_host_free(msgl_device *device, void *pointer) { return give_back(device, pointer); }

MSGL_EXPORT int32_t msgl_copy(msgl_device *device, void *destination, const void *source, int64_t bytes) {
  if (bytes < 0) return fail("cannot copy %lld bytes", static_cast<long long>(bytes));
  return enqueue(device, [=](msgl_device &) { std::memmove(destination, source, bytes); });
}

MSGL_EXPORT int32_t msgl_fill(msgl_device *device, void *destination, int32_t value, int64_t bytes) {
  if (bytes < 0) return fail("cannot fill %lld bytes", static_cast<long long>(bytes));
  return enqueue(device, [=](msgl_device &) { std::memset(destination, value, bytes); });
}

MSGL_EXPORT int32_t msgl_random(msgl_device *device, void *destination, int64_t count, int32_t dtype, uint64_t seed,
                                float scale) {
  if (dtype < MSGL_F32 || dtype > MSGL_BF16) return fail("cannot draw random values of dtype %d", dtype);
  return enqueue(device, [=](msgl_device &target) {
    constexpr int64_t kChunk = 16384;
    target.pool.run((count + kChunk - 1) / kChunk, [&](int64_t chunk) {
      float values[256];
      const int64_t end = std::min(count, (chunk + 1) * kChunk);
      for (int64_t from = chunk * kChunk; from < end; from += 256) {
        const int64_t size = std::min<int64_t>(256, end - from);
        for (int64_t i = 0; i < size; ++i) values[i] = scale * minisgl::random_value(seed, from + i);
        void *to = static_cast<char *>(destination) + from * (dtype == MSGL_F32 ? 4 : 2);
        MSGL_PICK(from_floats)(to, dtype, values, size);
      }
    });
  });
}
