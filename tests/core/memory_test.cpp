// Free memory as the kernel and control groups tell it, and sizes as people write them.
#include "core/memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "core/error.h"

namespace sfa::test {
namespace {
namespace fs = std::filesystem;

// A machine of 64 GB, 40 GB of it available, in files like the kernel's.
class HostMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    top_ = fs::temp_directory_path() / ("sfa_memory_" + std::to_string(::getpid()));
    fs::remove_all(top_);
    write("proc/meminfo", "MemTotal:       64000000 kB\nMemFree:         1000 kB\nMemAvailable:   40000000 kB\n");
  }
  void TearDown() override { fs::remove_all(top_); }
  void write(const std::string& name, const std::string& text) {
    fs::create_directories((top_ / name).parent_path());
    std::ofstream(top_ / name) << text;
  }
  [[nodiscard]] MemoryThere there() const { return host_memory(top_.string()); }
  fs::path top_;
};

TEST_F(HostMemory, WithoutGroupsItIsWhatIsAvailable) {
  EXPECT_EQ(there().free, std::size_t{40'000'000} * 1024);
  EXPECT_EQ(there().total, std::size_t{64'000'000} * 1024);
}

TEST_F(HostMemory, AGroupsLimitCountsWithoutWhatTheKernelCanDrop) {
  write("proc/self/cgroup", "0::/jobs/42\n");
  write("sys/fs/cgroup/jobs/42/memory.max", "max\n");
  write("sys/fs/cgroup/jobs/42/memory.current", "5\n");
  EXPECT_EQ(there().free, std::size_t{40'000'000} * 1024);
  // The limit stands one level up.
  write("sys/fs/cgroup/jobs/memory.max", "8000000000\n");
  write("sys/fs/cgroup/jobs/memory.current", "3000000000\n");
  write("sys/fs/cgroup/jobs/memory.stat", "anon 1\ninactive_file 1000000000\n");
  EXPECT_EQ(there().free, 6'000'000'000u);
  EXPECT_EQ(there().total, 8'000'000'000u);
}

TEST_F(HostMemory, ContainersSeeTheirGroupAtTheTop) {
  write("proc/self/cgroup", "3:cpu,memory:/docker/abc\n1:name=systemd:/x\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000000\n");
  write("sys/fs/cgroup/memory/memory.usage_in_bytes", "2500000000\n");
  write("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 0\n");
  EXPECT_EQ(there().free, 0u);
  // Version 1 writes a huge number for "no limit".
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(there().free, std::size_t{40'000'000} * 1024);
}

TEST(HostMemoryHere, IsThere) {
  const MemoryThere here = host_memory();
  EXPECT_GT(here.free, std::size_t{1} << 20);
  EXPECT_GE(here.total, here.free);
}

TEST(ParseBytes, UnitsOfBothKinds) {
  EXPECT_EQ(parse_bytes("141GB", "x"), 141'000'000'000u);
  EXPECT_EQ(parse_bytes("80 GiB", "x"), std::size_t{80} << 30);
  EXPECT_EQ(parse_bytes("1.5MB", "x"), 1'500'000u);
  EXPECT_EQ(parse_bytes("4096", "x"), 4096u);
  for (const char* bad : {"", "GB", "-1GB", "0", "12 parsecs", "1e30GB", "nan"})
    EXPECT_THROW(parse_bytes(bad, "--memory"), UsageError) << bad;
}

}  // namespace
}  // namespace sfa::test
