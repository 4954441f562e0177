// Writers that are killed, disks that fill up or fail, permissions that go: the checkpoint that was there stays whole,
// what is listed is whole, and the writer says what happened in one sentence.
//
// The system calls of the writer are replaced in this program: each counts, may fail with a chosen errno, or kills the
// process before it acts.
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "checkpoint/faults.h"
#include "checkpoint/helpers.h"

namespace sfa::test {
namespace {

constexpr std::int64_t kWidth = 2000;

// Every listed checkpoint is whole and holds one of the contents that its step was ever given.
void expect_whole(const fs::path& run, const std::vector<std::uint64_t>& contents = {}) {
  for (const fs::path& folder : list_checkpoints(run)) {
    CheckpointReader reader(folder);
    reader.verify();
    std::vector<std::uint64_t> allowed = contents;
    if (allowed.empty()) allowed.push_back(static_cast<std::uint64_t>(reader.step()));
    EXPECT_TRUE(std::any_of(allowed.begin(), allowed.end(),
                            [&](std::uint64_t content) { return holds(reader, content, kWidth); }));
  }
}

TEST(Crash, KilledAtRandomMoments) {
  const TempFolder run;
  RandomLife life([&] { save(run.path(), 1, kWidth); });
  int unfinished = 0;
  std::int64_t newest = 1;
  for (int round = 0; round < 40; ++round) {
    const pid_t child = start_child([&] {
      for (std::int64_t step = newest + 1;; ++step) {
        save(run.path(), step, kWidth);
        prune_checkpoints(run.path(), 3, 0);
      }
    });
    life.sleep();
    ::kill(child, SIGKILL);
    ASSERT_TRUE(WIFSIGNALED(wait_for(child)));
    unfinished += leftovers(run.path()).empty() ? 0 : 1;
    expect_whole(run.path());
    CheckpointReader reader(find_checkpoint(run.path()));
    ASSERT_GE(reader.step(), newest) << "a finished checkpoint was lost";
    newest = reader.step();
  }
  EXPECT_GT(newest, 1) << "no child ever finished a checkpoint";
  EXPECT_GT(unfinished, 0) << "no child was killed in the middle";
  prune_checkpoints(run.path(), 1, 0);
  EXPECT_TRUE(leftovers(run.path()).empty());
}

// The same at every single system call of: write step 2, replace it with other contents, prune step 1.
void kill_at_every_call(bool no_exchange) {
  const auto work = [](const fs::path& run) {
    save(run, 2, kWidth, 2);
    save(run, 2, kWidth, 3);
    prune_checkpoints(run, 1, 0);
  };
  int at = 1;
  for (bool finished = false; !finished; ++at) {
    const TempFolder run;
    save(run.path(), 1, kWidth, 1);
    const int status = wait_for(start_child([&] {
      faults.calls = 0;
      faults.kill_at = at;
      faults.no_exchange = no_exchange;
      work(run.path());
    }));
    finished = WIFEXITED(status);
    ASSERT_TRUE(!finished || WEXITSTATUS(status) == 0);
    expect_whole(run.path(), {1, 2, 3});
    ASSERT_FALSE(list_checkpoints(run.path()).empty()) << "nothing left after a kill at call " << at;
    // What follows a crash: the same step is written again, and all remains are cleared away.
    work(run.path());
    CheckpointReader reader(find_checkpoint(run.path()));
    EXPECT_TRUE(holds(reader, 3, kWidth));
    EXPECT_TRUE(leftovers(run.path()).empty()) << leftovers(run.path())[0];
    EXPECT_EQ(list_checkpoints(run.path()).size(), 1u);
  }
  EXPECT_GT(at, 30) << "too few system calls were seen";
}

TEST(Crash, KilledAtEverySystemCall) {
  kill_at_every_call(false);
}
TEST(Crash, KilledAtEverySystemCallWithoutExchangeOfFolders) {
  kill_at_every_call(true);
}

// Every call fails once, at every place where it is made.
TEST(Crash, EveryCallThatFails) {
  const struct {
    const char* call;
    int error;
    const char* reason;
  } kinds[] = {{"pwrite", EIO, "Input/output error"},   {"pwrite", ENOSPC, "No space left"},
               {"fsync", EIO, "Input/output"},          {"fsync", ENOSPC, "No space left"},
               {"rename", EACCES, "Permission denied"}, {"renameat2", EPERM, "not permitted"},
               {"ftruncate", EIO, "Input/output"}};
  for (const auto& kind : kinds) {
    const bool works = child_succeeds([&] {
      for (int at = 1;; ++at) {
        const TempFolder run;
        save(run.path(), 1, kWidth);
        faults.fail(kind.call, at, kind.error);
        const std::string sentence = error_of([&] { save(run.path(), 1, kWidth, 2); });
        const bool reached = faults.of_kind >= at;
        faults.heal();
        require(sentence.empty() == !reached, "{} {}: '{}'", kind.call, at, sentence);
        require(!reached || sentence.find(kind.reason) != std::string::npos, "{} {}: '{}'", kind.call, at, sentence);
        require(sentence.find('\n') == std::string::npos, "more than a line: {}", sentence);
        CheckpointReader reader(find_checkpoint(run.path()));
        reader.verify();
        require(holds(reader, 1, kWidth) || holds(reader, 2, kWidth), "neither the old nor the new is there");
        save(run.path(), 2, kWidth);  // and on it goes
        prune_checkpoints(run.path(), 1, 0);
        require(leftovers(run.path()).empty(), "remains of the failure stay");
        if (!reached) return require(at > 1, "{} was never called", kind.call);
      }
    });
    EXPECT_TRUE(works) << kind.call << " " << kind.reason;
  }
}

TEST(Crash, ShortWritesAreContinued) {
  const TempFolder run;
  EXPECT_TRUE(child_succeeds([&] {
    faults.short_write = 37;
    save(run.path(), 1, kWidth);
  }));
  expect_whole(run.path());
  EXPECT_EQ(list_checkpoints(run.path()).size(), 1u);
}

// A limit on the size of files, met by the file of the writer or by the memory file in which HDF5 works.
TEST(Crash, FileSizeLimit) {
  const TempFolder run;
  save(run.path(), 1, kWidth);
  for (const rlim_t limit : {0ul, 5'000ul, 1ul << 20, (1ul << 20) + 9'000, (1ul << 20) + 40'000}) {
    EXPECT_TRUE(child_succeeds([&] {
      std::signal(SIGXFSZ, SIG_IGN);
      const struct rlimit value { limit, limit };
      require(::setrlimit(RLIMIT_FSIZE, &value) == 0, "setrlimit");
      const std::string sentence = error_of([&] { save(run.path(), 2, kWidth); });
      require(sentence.find("ulimit -f") != std::string::npos, "'{}'", sentence);
      require(leftovers(run.path()).empty(), "the broken file stays and fills the disk");
    })) << limit;
    expect_whole(run.path());
    EXPECT_EQ(list_checkpoints(run.path()).size(), 1u);
  }
}

// A real full disk: a tmpfs in a mount namespace of its own, filled to leave less than a checkpoint takes, by and by.
TEST(Crash, FullDisk) {
  const TempFolder run;
  const int status = wait_for(start_child([&] {
    if (::unshare(CLONE_NEWNS) != 0 || ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", run.path().c_str(), "tmpfs", 0, "size=1m") != 0)
      std::exit(77);
    save(run.path(), 1, kWidth);
    int failures = 0;
    const fs::path filler = run.path() / "filler";
    for (std::size_t filled = 1000 * 1024; filled > 700 * 1024; filled -= 4096) {
      fs::remove(filler);
      write_file(filler, std::string(filled, 'x'));
      const std::string sentence = error_of([&] { save(run.path(), 2, kWidth); });
      if (!sentence.empty()) {
        ++failures;
        require(sentence.find("No space left on device; free some space") != std::string::npos, "'{}'", sentence);
        require(list_checkpoints(run.path()).size() == 1, "a checkpoint was lost or gained");
        require(leftovers(run.path()).empty(), "the broken file stays and fills the disk");
      }
      CheckpointReader reader(find_checkpoint(run.path()));
      reader.verify();
      require(reader.step() == (sentence.empty() ? 2 : 1), "the wrong checkpoint is the newest");
      fs::remove_all(run.path() / "step_00000002");
    }
    require(failures > 5 && failures < 70, "{} of 75 saves failed", failures);
  }));
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77)
    GTEST_SKIP() << "mounting a small tmpfs needs root; EveryCallThatFails tests the same path";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Crash, PermissionLost) {
  const TempFolder run;
  const bool root = ::geteuid() == 0;
  ASSERT_TRUE(!root || ::chown(run.path().c_str(), 65534, 65534) == 0);
  const bool works = child_succeeds([&] {
    if (root) require(::setegid(65534) == 0 && ::seteuid(65534) == 0, "cannot become another user");
    save(run.path(), 1, kWidth);
    {
      CheckpointWriter writer(run.path(), 2);
      const nlohmann::json list = writer.finish_file();
      ::chmod(run.path().c_str(), 0555);  // between the files and the rename
      const std::string sentence = error_of([&] { writer.publish({list}, {}, ""); });
      require(sentence.find("Permission denied; choose a place that this user may use") != std::string::npos, "'{}'",
              sentence);
    }
    const std::string sentence = error_of([&] { save(run.path(), 3, kWidth); });
    require(sentence.find("Permission denied") != std::string::npos, "'{}'", sentence);
    require(find_checkpoint(run.path()).filename() == "step_00000001", "the old checkpoint is not found");
    CheckpointReader(find_checkpoint(run.path())).verify();
    ::chmod(find_checkpoint(run.path()).c_str(), 0);
    const std::string unreadable = error_of([&] { CheckpointReader(run.path() / "step_00000001"); });
    require(unreadable.find("Permission denied") != std::string::npos, "'{}'", unreadable);
    ::chmod((run.path() / "step_00000001").c_str(), 0755);
    ::chmod(run.path().c_str(), 0);
    const std::string closed = error_of([&] { list_checkpoints(run.path()); });
    require(closed.find("cannot read the folder") != std::string::npos, "'{}'", closed);
    ::chmod(run.path().c_str(), 0755);
    prune_checkpoints(run.path(), 1, 0);
    require(leftovers(run.path()).empty(), "remains of the failure stay");
    // Back, so that a leak checker may look at this process when it ends.
    require(!root || (::seteuid(0) == 0 && ::setegid(0) == 0 && ::prctl(PR_SET_DUMPABLE, 1) == 0),
            "cannot become root again");
  });
  EXPECT_TRUE(works);
  ::chmod(run.path().c_str(), 0755);
}

TEST(Crash, ThingsInTheWay) {
  const TempFolder run;
  write_file(run.path() / "step_00000001", "a file where the checkpoint goes");
  EXPECT_ERROR(save(run.path(), 1, kWidth), "step_00000001");
  EXPECT_EQ(read_file(run.path() / "step_00000001"), "a file where the checkpoint goes");
  write_file(run.path() / "file", "x");
  EXPECT_ERROR(save(run.path() / "file", 1, kWidth), "could not create the folder");
  fs::create_symlink("/dev/null", run.path() / "link");
  fs::create_directory(run.path() / ".step_00000002.tmp");
  fs::create_symlink(run.path() / "file", run.path() / ".step_00000002.tmp" / "rank_00000.h5");
  EXPECT_ERROR(save(run.path(), 2, kWidth), "rank_00000.h5");
  EXPECT_EQ(read_file(run.path() / "file"), "x") << "a symbolic link was followed";
}

}  // namespace
}  // namespace sfa::test
