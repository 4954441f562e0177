// The little of HDF5's C API that shards and checkpoints need: one lock, handles that close themselves, attributes.
//
// The library keeps global state and is not always built thread-safe, so every call is made under hdf5::Lock, which
// also silences HDF5's own printing: failures become sfa::Error with HDF5's innermost reason in the sentence. Large
// datasets are not moved through HDF5: they are contiguous, and are read and written at dataset_offset() with pread and
// pwrite.
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"

namespace sfa::hdf5 {

/// "1.10.8": of the library that is loaded.
std::string library_version();

/// Held around every use of HDF5, handles' destructors included. Recursive.
class Lock {
 public:
  Lock();

 private:
  std::lock_guard<std::recursive_mutex> guard_;
};

/// Owns an hid_t and closes it with the function given.
class Handle {
 public:
  using Closer = herr_t (*)(hid_t);
  Handle() = default;
  Handle(hid_t id, Closer closer) : id_(id), closer_(closer) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), closer_(other.closer_) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(closer_, other.closer_);
    return *this;
  }
  ~Handle() { close(); }
  herr_t close() { return id_ >= 0 ? closer_(std::exchange(id_, -1)) : 0; }
  [[nodiscard]] hid_t get() const { return id_; }
  [[nodiscard]] bool valid() const { return id_ >= 0; }

 private:
  hid_t id_ = -1;
  Closer closer_ = nullptr;
};

/// The innermost description on HDF5's error stack ("truncated file: eof = 96, ..."), or "unknown reason".
std::string last_error();

/// Creates `path`, which must not exist, in the format of HDF5 1.8 (readable everywhere, its metadata checksummed).
/// Datasets of 64 KiB and more begin at multiples of 4096 bytes; no times are recorded, so that equal content makes
/// equal files.
Handle create_file(const std::string& path);
/// Opens for reading; throws Error naming the path and HDF5's reason.
Handle open_file(const std::string& path);

/// One-dimensional contiguous dataset `name` of `count` elements of `type`, its space allocated at once.
/// `data` may be null: the caller then fills it with pwrite at dataset_offset() after the file is closed.
Handle create_dataset(hid_t file, const std::string& name, hid_t type, std::uint64_t count, const void* data);
/// Byte offset of a contiguous dataset in its file; nullopt when it is chunked, compact or not allocated.
std::optional<std::uint64_t> dataset_offset(hid_t dataset);
/// Elements of a one-dimensional dataset; throws when it has another rank.
std::uint64_t dataset_length(hid_t dataset, const std::string& where);

void write_attribute(hid_t object, const std::string& name, std::int64_t value);
void write_attribute(hid_t object, const std::string& name, const std::string& value);
/// nullopt when the attribute is missing or of another kind.
std::optional<std::int64_t> read_int(hid_t object, const std::string& name);
std::optional<std::string> read_string(hid_t object, const std::string& name);

}  // namespace sfa::hdf5
