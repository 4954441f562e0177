#include "checkpoint/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>

#include "core/error.h"

namespace sfa::checkpoint {
namespace {

const char* hint(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "; free some space, or keep fewer checkpoints";
    case EFBIG:
      return "; a limit on the size of files is set (see ulimit -f)";
    case EACCES:
    case EPERM:
    case EROFS:
      return "; choose a folder that this user may write, or change its permissions";
    case EIO:
      return "; the disk reports a fault, see the kernel's log";
    default:
      return "";
  }
}

// One system call at most this long: Linux transfers no more than 2^31 - 4096 bytes a call.
constexpr std::size_t kMaxTransfer = std::size_t{1} << 30;

}  // namespace

Fd::~Fd() {
  if (fd_ >= 0) ::close(fd_);
}

void fail_system(std::string_view what, const std::filesystem::path& path, int error) {
  fail("cannot {} {}: {}{}", what, path.string(), std::generic_category().message(error), hint(error));
}

Fd open_regular(const std::filesystem::path& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) {
    const int error = errno;
    require(error != ENOENT, "{} is missing", path.string());
    fail("cannot read {}: {}", path.string(), std::generic_category().message(error));
  }
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) fail_system("read", path, errno);
  require(S_ISREG(info.st_mode), "{} is not a regular file", path.string());
  return fd;
}

std::int64_t size_of_file(const Fd& fd, const std::filesystem::path& path) {
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) fail_system("read the size of", path, errno);
  return info.st_size;
}

Fd open_for_writing(const std::filesystem::path& path) {
  Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666));
  if (!fd.valid()) fail_system("create", path, errno);
  return fd;
}

void write_at(const Fd& fd, const void* data, std::size_t bytes, std::int64_t offset,
              const std::filesystem::path& path) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::pwrite(fd.get(), from, std::min(bytes, kMaxTransfer), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail_system("write", path, written < 0 ? errno : ENOSPC);
    from += written;
    offset += written;
    bytes -= static_cast<std::size_t>(written);
  }
}

void read_at(const Fd& fd, void* out, std::size_t bytes, std::int64_t offset, const std::filesystem::path& path) {
  char* to = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t got = ::pread(fd.get(), to, std::min(bytes, kMaxTransfer), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("cannot read {}: {}", path.string(), std::generic_category().message(errno));
    require(got != 0, "{} is truncated: it ends at byte {}, {} more were expected", path.string(), offset, bytes);
    to += got;
    offset += got;
    bytes -= static_cast<std::size_t>(got);
  }
}

void truncate(const Fd& fd, std::int64_t bytes, const std::filesystem::path& path) {
  if (::ftruncate(fd.get(), bytes) != 0) fail_system("set the size of", path, errno);
}

void sync_file(const Fd& fd, const std::filesystem::path& path) {
  int result = 0;
  do result = ::fsync(fd.get());
  while (result != 0 && errno == EINTR);
  if (result != 0) fail_system("write", path, errno);
}

void sync_folder(const std::filesystem::path& folder) {
  const Fd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) fail_system("open the folder", folder, errno);
  if (::fsync(fd.get()) != 0 && errno != EINVAL && errno != ENOTSUP) fail_system("write the folder", folder, errno);
}

void replace_folder(const std::filesystem::path& fresh, const std::filesystem::path& target,
                    const std::filesystem::path& aside) {
  if (::rename(fresh.c_str(), target.c_str()) == 0) return sync_folder(target.parent_path());
  if (errno != ENOTEMPTY && errno != EEXIST) fail_system("rename the finished checkpoint to", target, errno);

  if (::renameat2(AT_FDCWD, fresh.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) {
    sync_folder(target.parent_path());
    return remove_tree(fresh);  // what stood under the good name before
  }
  if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP) fail_system("replace the checkpoint", target, errno);

  remove_tree(aside);
  if (::rename(target.c_str(), aside.c_str()) != 0) fail_system("move aside the checkpoint", target, errno);
  if (::rename(fresh.c_str(), target.c_str()) != 0) {
    const int error = errno;
    if (::rename(aside.c_str(), target.c_str()) != 0)
      fail("cannot rename the finished checkpoint to {}: {}; the one before it is at {}", target.string(),
           std::generic_category().message(error), aside.string());
    fail_system("rename the finished checkpoint to", target, error);
  }
  sync_folder(target.parent_path());
  remove_tree(aside);
}

void remove_tree(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error && error != std::errc::no_such_file_or_directory) fail_system("delete", path, error.value());
}

}  // namespace sfa::checkpoint
