/*
 * loader.h: brings file contents to the device with several threads, each of which reads into one pinned buffer while the
 * copy and conversion of its other one run.
 *
 *   file --pread--> pinned buffer --copy--> staging buffer on the device --convert--> destination
 *
 * Loads are cut into pieces of at most `piece_bytes`, which the threads take from one queue.
 */
#ifndef MINISGL_LOADER_H
#define MINISGL_LOADER_H

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace minisgl {

/* A file opened for reading; throws where it cannot be opened. */
class File {
 public:
  explicit File(const char *path);
  ~File();
  File(const File &) = delete;
  File &operator=(const File &) = delete;
  void read(void *destination, int64_t bytes, int64_t offset) const;  // throws on an error or a file too short
  void prefetch(int64_t offset, int64_t bytes) const;                 // asks for read-ahead
  /* Throws where the file does not hold that many rows, of which the last takes last_row bytes. */
  void require(int64_t offset, int64_t rows, int64_t row_bytes, int64_t last_row) const;

 private:
  std::string path_;
  int descriptor_;
  int64_t size_ = 0;
};

/* rows of `columns` values of `dtype`, row_bytes apart from `offset` on, to destination [rows, columns]. */
struct Load {
  const File *file;
  int64_t offset, row_bytes, rows, columns;
  int32_t dtype;
  void *destination;
  int32_t destination_dtype;
};

struct LanePair;

class Loader {
 public:
  explicit Loader(int device);
  ~Loader();
  /* Queues a load; throws where it could never succeed. */
  void add(Load load);
  /* Waits for all loads, at most timeout_ms, and tells whether all are done. bytes: file bytes loaded so far. Throws the
   * first error, once. */
  bool wait(int32_t timeout_ms, int64_t *bytes);

 private:
  void work() noexcept;
  void run_pieces(LanePair &lanes);

  static constexpr int64_t piece_bytes = 8 << 20;
  const int device_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Load> queue_;
  std::vector<std::thread> threads_;  // started by the first load
  int64_t pending_ = 0;               // pieces that are queued or under way
  int64_t bytes_ = 0;
  std::string error_;
  int64_t holders_ = 0;               // threads that hold buffers
  bool draining_ = false;             // nothing more is coming: buffers are given back when the queue is empty
  bool closing_ = false;
};

}  // namespace minisgl

#endif
