#include "checkpoint/faults.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <string_view>

namespace sfa::test {
Faults faults;
}

namespace {
using sfa::test::faults;

// True when the call must fail, with errno set.
bool intercept(const char* call) {
  if (++faults.calls == faults.kill_at) ::kill(::getpid(), SIGKILL);
  if (std::string_view(call) != faults.failing.load() || ++faults.of_kind != faults.fail_at) return false;
  errno = faults.error;
  return true;
}

// The memory file in which HDF5 works is not a disk.
bool in_memory(int fd) {
  char target[64] = {};
  return ::readlink(fmt::format("/proc/self/fd/{}", fd).c_str(), target, sizeof(target) - 1) > 0 &&
         std::string_view(target).starts_with("/memfd:");
}
}  // namespace

extern "C" {
ssize_t pwrite(int fd, const void* data, size_t bytes, off_t offset) {
  if (intercept("pwrite")) return -1;
  if (faults.short_write > 0) bytes = std::min(bytes, static_cast<size_t>(faults.short_write));
  return ::syscall(SYS_pwrite64, fd, data, bytes, offset);
}
int fsync(int fd) {
  while (faults.hold_fsync) ::usleep(1000);
  return intercept("fsync") ? -1 : static_cast<int>(::syscall(SYS_fsync, fd));
}
int ftruncate(int fd, off_t bytes) noexcept {
  return !in_memory(fd) && intercept("ftruncate") ? -1 : static_cast<int>(::syscall(SYS_ftruncate, fd, bytes));
}
int rename(const char* from, const char* to) noexcept {
  return intercept("rename") ? -1 : static_cast<int>(::syscall(SYS_rename, from, to));
}
int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags) noexcept {
  if (intercept("renameat2")) return -1;
  if (faults.no_exchange && flags != 0) {
    errno = EINVAL;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_renameat2, from_folder, from, to_folder, to, flags));
}
int unlinkat(int folder, const char* name, int flags) noexcept {
  return intercept("unlinkat") ? -1 : static_cast<int>(::syscall(SYS_unlinkat, folder, name, flags));
}
}

// The replacement itself: without it the tests of faults would test nothing.
TEST(Faults, AreInjected) {
  const int before = faults.calls;
  faults.fail("fsync", 2, EIO);
  EXPECT_EQ(::fsync(-1), -1);
  EXPECT_EQ(errno, EBADF);
  EXPECT_EQ(::fsync(-1), -1);
  EXPECT_EQ(errno, EIO);
  faults.heal();
  EXPECT_EQ(::fsync(-1), -1);
  EXPECT_EQ(errno, EBADF);
  EXPECT_EQ(faults.calls - before, 3);
}
