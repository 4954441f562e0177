// Files by descriptor: whole reads and writes at an offset, and putting a finished file in its place atomically.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sfa {

/// Owns a file descriptor. Every failure throws Error with the path and the system's reason. Movable, not copyable;
/// read_at and write_at may be called from many threads at once.
class File {
 public:
  File() = default;
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  /// A regular file: a pipe or device is refused instead of waited for.
  static File open_to_read(const std::string& path);
  static File open_to_update(const std::string& path);
  /// Made when missing, emptied when there.
  static File create(const std::string& path);
  /// Made when missing, its content kept when there; follows no symbolic link.
  static File open_or_create(const std::string& path);
  /// A nameless file in memory; `label` stands for its path.
  static File in_memory(const std::string& label);
  /// A nameless file in `folder` that vanishes with the descriptor, however the process ends.
  static File temporary_in(const std::string& folder);

  [[nodiscard]] bool valid() const { return fd_ >= 0; }
  [[nodiscard]] int descriptor() const { return fd_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::uint64_t size() const;

  /// Exactly `count` bytes from `offset`; a shorter file is an error.
  void read_at(std::uint64_t offset, void* out, std::size_t count) const;
  /// Exactly `count` bytes at `offset`; a full disk is an error.
  void write_at(std::uint64_t offset, const void* data, std::size_t count);
  /// Sets the size.
  void truncate(std::uint64_t bytes);
  void sync();

 private:
  File(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_ = -1;
  std::string path_;
};

/// What the system calls `error`, and for the common reasons of a failed write what to do about it.
std::string system_reason(int error);

/// Renames `from` to `to` (same folder) and syncs the folder. Unless `replace`, throws when `to` exists.
void rename_into_place(const std::string& from, const std::string& to, bool replace);

/// Writes a small file in one step: beside it, synced, renamed. Unless `replace`, throws when `path` exists.
void write_whole_file(const std::string& path, const std::string& content, bool replace);

/// The folder that holds `path`; "." for a bare name.
std::string folder_of(const std::string& path);

}  // namespace sfa
