#include "core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/error.h"

namespace sfa {
namespace {
std::string reason() {
  return system_reason(errno);
}

int open_or_fail(const std::string& path, int flags, const char* what) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  if (fd >= 0) return fd;
  if (errno == ENOENT) fail("{} does not exist", path);
  fail("could not open {} {}: {}", path, what, reason());
}
}  // namespace

File::File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  return *this;
}

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

File File::open_to_read(const std::string& path) {
  File file(open_or_fail(path, O_RDONLY | O_NONBLOCK, "for reading"), path);
  struct stat status {};
  if (::fstat(file.fd_, &status) != 0) fail("could not read the size of {}: {}", path, reason());
  if (S_ISDIR(status.st_mode)) fail("{} is a folder, not a file", path);
  if (!S_ISREG(status.st_mode)) fail("{} is not a regular file", path);
  return file;
}

File File::open_to_update(const std::string& path) {
  return {open_or_fail(path, O_RDWR, "for writing"), path};
}

File File::create(const std::string& path) {
  return {open_or_fail(path, O_RDWR | O_CREAT | O_TRUNC, "for writing"), path};
}

File File::open_or_create(const std::string& path) {
  return {open_or_fail(path, O_RDWR | O_CREAT | O_NOFOLLOW, "for writing"), path};
}

File File::in_memory(const std::string& label) {
  const int fd = ::memfd_create("sfa", MFD_CLOEXEC);
  if (fd < 0) fail("could not create {}: {}", label, reason());
  return {fd, label};
}

File File::temporary_in(const std::string& folder) {
  const std::string label = "a temporary file in " + folder;
  int fd = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOSYS)) {  // no O_TMPFILE on this file system
    std::string name = folder + "/.sfa-tmp-XXXXXX";
    fd = ::mkstemp(name.data());
    if (fd >= 0) ::unlink(name.c_str());
  }
  if (fd < 0) fail("could not create {}: {}", label, reason());
  return {fd, label};
}

std::uint64_t File::size() const {
  struct stat status {};
  if (::fstat(fd_, &status) != 0) fail("could not read the size of {}: {}", path_, reason());
  return static_cast<std::uint64_t>(status.st_size);
}

void File::read_at(std::uint64_t offset, void* out, std::size_t count) const {
  auto* bytes = static_cast<char*>(out);
  while (count > 0) {
    const ssize_t got = ::pread(fd_, bytes, count, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("could not read {} at byte {}: {}", path_, offset, reason());
    if (got == 0) fail("{} is truncated: it ends before byte {}", path_, offset + count);
    bytes += got;
    offset += static_cast<std::uint64_t>(got);
    count -= static_cast<std::size_t>(got);
  }
}

void File::write_at(std::uint64_t offset, const void* data, std::size_t count) {
  const auto* bytes = static_cast<const char*>(data);
  while (count > 0) {
    const ssize_t put = ::pwrite(fd_, bytes, count, static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) fail("could not write {}: {}", path_, system_reason(put < 0 ? errno : ENOSPC));
    bytes += put;
    offset += static_cast<std::uint64_t>(put);
    count -= static_cast<std::size_t>(put);
  }
}

void File::truncate(std::uint64_t bytes) {
  if (::ftruncate(fd_, static_cast<off_t>(bytes)) != 0) fail("could not set the size of {}: {}", path_, reason());
}

void File::sync() {
  int result = 0;
  do result = ::fsync(fd_);
  while (result != 0 && errno == EINTR);
  if (result != 0) fail("could not write {} to disk: {}", path_, reason());
}

std::string system_reason(int error) {
  const char* advice = "";
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      advice = "; free some space";
      break;
    case EFBIG:
      advice = "; a limit on the size of files is set (see ulimit -f)";
      break;
    case EACCES:
    case EPERM:
    case EROFS:
      advice = "; choose a place that this user may use, or change its permissions";
      break;
    case EIO:
      advice = "; the disk reports a fault, see the kernel's log";
      break;
    default:
      break;
  }
  return std::strerror(error) + std::string(advice);
}

void rename_into_place(const std::string& from, const std::string& to, bool replace) {
  int result = ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), replace ? 0u : RENAME_NOREPLACE);
  if (result != 0 && !replace && errno == EINVAL) {  // the file system knows no RENAME_NOREPLACE
    if (std::filesystem::exists(to)) fail("{} exists already", to);
    result = ::rename(from.c_str(), to.c_str());
  }
  if (result != 0 && errno == EEXIST) fail("{} exists already", to);
  if (result != 0) fail("could not rename {} to {}: {}", from, to, reason());
  const int folder = ::open(folder_of(to).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    ::fsync(folder);  // the name itself must survive a power cut; file systems that cannot do it say so, harmlessly
    ::close(folder);
  }
}

void write_whole_file(const std::string& path, const std::string& content, bool replace) {
  const std::filesystem::path target(path);
  const std::string temporary =
      folder_of(path) + "/." + target.filename().string() + ".tmp-" + std::to_string(::getpid());
  File out = File::create(temporary);
  try {
    out.write_at(0, content.data(), content.size());
    out.sync();
    rename_into_place(temporary, path, replace);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

std::string folder_of(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

}  // namespace sfa
