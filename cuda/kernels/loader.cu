/* loader.cu: the threads that load; loader.h draws the way of a piece. */
#include "loader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "convert.h"
#include "device.h"

namespace minisgl {

File::File(const char *path) : path_(path), descriptor_(open(path, O_RDONLY | O_CLOEXEC)) {
  if (descriptor_ < 0) fail("%s: %s", path, strerror(errno));
  struct stat status {};
  if (fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(descriptor_);
    fail("%s is not a file", path);
  }
  size_ = status.st_size;
}

File::~File() { close(descriptor_); }

void File::read(void *destination, int64_t bytes, int64_t offset) const {
  char *cursor = static_cast<char *>(destination);
  while (bytes > 0) {
    const ssize_t count = pread(descriptor_, cursor, static_cast<size_t>(bytes), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("%s: %s", path_.c_str(), strerror(errno));
    if (count == 0) fail("%s ends at byte %lld, before the tensor does", path_.c_str(), static_cast<long long>(offset));
    cursor += count;
    offset += count;
    bytes -= count;
  }
}

void File::require(int64_t offset, int64_t rows, int64_t row_bytes, int64_t last_row) const {
  // The same as offset + (rows - 1) * row_bytes + last_row <= size, without a sum that could overflow.
  if (offset >= 0 && offset <= size_ && last_row <= size_ - offset && row_bytes > 0 &&
      rows - 1 <= (size_ - offset - last_row) / row_bytes)
    return;
  fail("%s ends at byte %lld, before the tensor does", path_.c_str(), static_cast<long long>(size_));
}

void File::prefetch(int64_t offset, int64_t bytes) const {
  posix_fadvise(descriptor_, offset, bytes, POSIX_FADV_WILLNEED);
}

/* One of a thread's two ways to the device. */
struct Lane {
  explicit Lane(int64_t bytes) : staging(static_cast<size_t>(bytes)) {
    check(cudaMallocHost(&pinned, static_cast<size_t>(bytes)), "pinned host memory");
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  ~Lane() {
    if (stream != nullptr) cudaStreamDestroy(stream);
    cudaFreeHost(pinned);
  }
  char *pinned = nullptr;
  DeviceBuffer staging;
  cudaStream_t stream = nullptr;
  int64_t in_flight = -1;  // file bytes of the piece that the stream carries; -1: none
};

struct LanePair {
  explicit LanePair(int64_t bytes) : lane{Lane(bytes), Lane(bytes)} {}
  Lane lane[2];
};

namespace {

/* Bytes of a row that hold values; the rest of row_bytes is skipped. */
int64_t payload(const Load &load) { return packed_bytes(load.dtype, load.columns); }

/* Whether the gaps between rows are so small that reading over them is faster than a call per row. */
bool reads_through(const Load &load) { return load.row_bytes <= 4 * payload(load); }

/* Bytes that `rows` rows take in the pinned buffer. */
int64_t span(const Load &load, int64_t rows) {
  return reads_through(load) ? (rows - 1) * load.row_bytes + payload(load) : rows * payload(load);
}

void read_piece(const Load &piece, char *buffer) {
  if (reads_through(piece)) return piece.file->read(buffer, span(piece, piece.rows), piece.offset);
  for (int64_t i = 0; i < piece.rows; i++)
    piece.file->read(buffer + i * payload(piece), payload(piece), piece.offset + i * piece.row_bytes);
}

void send_piece(const Load &piece, Lane &lane) {
  const int64_t bytes = span(piece, piece.rows);
  const int64_t row_bytes = reads_through(piece) ? piece.row_bytes : payload(piece);
  const bool as_is = piece.dtype == piece.destination_dtype && (row_bytes == payload(piece) || piece.rows == 1);
  void *target = as_is ? piece.destination : lane.staging.get();
  check(cudaMemcpyAsync(target, lane.pinned, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, lane.stream),
        "copying weights");
  if (!as_is)
    enqueue_convert(lane.stream, piece.destination, piece.destination_dtype, lane.staging.get(), piece.dtype,
                    piece.rows, piece.columns, row_bytes);
}

}  // namespace

Loader::Loader(int device) : device_(device) {}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  for (std::thread &thread : threads_) thread.join();
}

void Loader::add(Load load) {
  require_conversion(load.dtype, load.destination_dtype);
  if (load.rows == 0) return;
  const int64_t row = payload(load);
  if (load.row_bytes < row)
    fail("rows lie %lld bytes apart, and %lld are needed", static_cast<long long>(load.row_bytes),
         static_cast<long long>(row));
  const int64_t step = std::max<int64_t>(1, piece_bytes / std::max(row, reads_through(load) ? load.row_bytes : row));
  if (span(load, 1) > piece_bytes) fail("a row of %lld bytes is too long to load", static_cast<long long>(row));
  load.file->prefetch(load.offset, (load.rows - 1) * load.row_bytes + row);
  const std::lock_guard lock(mutex_);
  draining_ = false;
  const int64_t destination_row = load.columns * dtype_bytes(load.destination_dtype);
  for (int64_t begin = 0; begin < load.rows; begin += step) {
    Load piece = load;
    piece.rows = std::min(step, load.rows - begin);
    piece.offset += begin * load.row_bytes;
    piece.destination = static_cast<char *>(load.destination) + begin * destination_row;
    queue_.push_back(piece);
    pending_++;
  }
  if (threads_.empty()) {
    const unsigned count = std::clamp(std::thread::hardware_concurrency() / 2, 2u, 8u);
    for (unsigned i = 0; i < count; i++) threads_.emplace_back([this] { work(); });
  }
  changed_.notify_all();
}

bool Loader::wait(int32_t timeout_ms, int64_t *bytes) {
  std::unique_lock lock(mutex_);
  draining_ = true;  // the caller has queued all that it wants for now: buffers may go
  changed_.notify_all();
  const bool done = changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                                      [&] { return pending_ == 0 && holders_ == 0; });
  *bytes = bytes_;
  if (!error_.empty()) {
    const std::string text = std::move(error_);
    error_.clear();
    fail("%s", text.c_str());
  }
  return done;
}

void Loader::work() noexcept {
  std::unique_ptr<LanePair> lanes;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return closing_ || !queue_.empty() || (draining_ && lanes != nullptr); });
      if (closing_) return;
      if (queue_.empty()) {
        lock.unlock();
        lanes.reset();
        lock.lock();
        holders_--;
        changed_.notify_all();
        continue;
      }
      if (lanes == nullptr) holders_++;
    }
    try {
      check(cudaSetDevice(device_), "cudaSetDevice");
      if (lanes == nullptr) lanes = std::make_unique<LanePair>(piece_bytes);
      run_pieces(*lanes);
    } catch (const std::exception &error) {
      const std::lock_guard lock(mutex_);
      if (error_.empty()) error_ = error.what();
      pending_ -= static_cast<int64_t>(queue_.size());  // the model cannot be used any more
      queue_.clear();
      if (lanes == nullptr) holders_--;
      changed_.notify_all();
    }
  }
}

/* Takes pieces until the queue is empty, and waits for them. */
void Loader::run_pieces(LanePair &lanes) {
  int64_t taken = 0;
  const auto settle = [&](Lane &lane) {
    if (lane.in_flight < 0) return;
    check(cudaStreamSynchronize(lane.stream), "loading weights");
    const std::lock_guard lock(mutex_);
    bytes_ += lane.in_flight;
    lane.in_flight = -1;
    pending_--;
    taken--;
    changed_.notify_all();
  };
  try {
    for (int turn = 0;; turn ^= 1) {
      Lane &lane = lanes.lane[turn];
      settle(lane);
      Load piece;
      {
        const std::lock_guard lock(mutex_);
        if (queue_.empty() || closing_) break;
        piece = queue_.front();
        queue_.pop_front();
        taken++;
      }
      read_piece(piece, lane.pinned);
      lane.in_flight = piece.rows * payload(piece);
      send_piece(piece, lane);
    }
    for (Lane &lane : lanes.lane) settle(lane);
  } catch (const std::exception &error) {
    for (Lane &lane : lanes.lane) {
      cudaStreamSynchronize(lane.stream);
      lane.in_flight = -1;
    }
    const std::lock_guard lock(mutex_);
    if (error_.empty()) error_ = error.what();
    pending_ -= taken;
    throw;
  }
}

}  // namespace minisgl
