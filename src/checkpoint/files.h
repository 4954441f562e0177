// The system calls under checkpoints: descriptors that close themselves, whole reads and writes at an offset, fsync,
// atomic replacement of a folder. Every failure is an Error whose sentence names the path and the system's reason, and
// for the common reasons what to do about it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <utility>

namespace sfa::checkpoint {

/// Owns a file descriptor.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd();
  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] bool valid() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

/// Throws Error: "cannot {what} {path}: {reason of error}; {hint}".
[[noreturn]] void fail_system(std::string_view what, const std::filesystem::path& path, int error);

/// Opens a regular file for reading (a pipe or device is refused instead of waited for).
Fd open_regular(const std::filesystem::path& path);
/// Size of an open file.
std::int64_t size_of_file(const Fd& fd, const std::filesystem::path& path);
/// Opens for writing, created when missing, its content kept; follows no symbolic link.
Fd open_for_writing(const std::filesystem::path& path);

/// Writes all bytes, whatever the kernel takes at a time.
void write_at(const Fd& fd, const void* data, std::size_t bytes, std::int64_t offset,
              const std::filesystem::path& path);
/// Reads all bytes; a file that ends before is an Error.
void read_at(const Fd& fd, void* out, std::size_t bytes, std::int64_t offset, const std::filesystem::path& path);
void truncate(const Fd& fd, std::int64_t bytes, const std::filesystem::path& path);
void sync_file(const Fd& fd, const std::filesystem::path& path);
/// Makes the names in a folder durable. File systems that cannot fsync a folder are taken as they are.
void sync_folder(const std::filesystem::path& folder);

/// Puts the folder `fresh` in the place of `target` in one step: when `target` exists, the two are exchanged and what
/// it held is deleted afterwards, so that at every moment one of them is whole under the good name. Where the file
/// system knows no exchange, the old folder is first moved to `aside`, which readers of the run folder still find. Both
/// parents must be the same folder, which is fsynced.
void replace_folder(const std::filesystem::path& fresh, const std::filesystem::path& target,
                    const std::filesystem::path& aside);

/// Deletes a file or a folder with all it holds; nothing there is fine.
void remove_tree(const std::filesystem::path& path);

}  // namespace sfa::checkpoint
