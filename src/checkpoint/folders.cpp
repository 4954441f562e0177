#include "checkpoint/folders.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>

#include "core/error.h"
#include "core/file.h"

namespace sfa::checkpoint {
void fail_system(std::string_view what, const std::filesystem::path& path, int error) {
  fail("could not {} {}: {}", what, path.string(), system_reason(error));
}

void sync_folder(const std::filesystem::path& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail_system("open the folder", folder, errno);
  const int error = ::fsync(fd) == 0 ? 0 : errno;
  ::close(fd);
  if (error != 0 && error != EINVAL && error != ENOTSUP) fail_system("write the folder", folder, error);
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
      fail("could not rename the finished checkpoint to {}: {}; the one before it is at {}", target.string(),
           system_reason(error), aside.string());
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
