// The system calls of a checkpoint's writer, replaced in the test program (faults_test.cpp): each is counted, may fail
// with a chosen errno, kill the process before it acts, or wait.
#pragma once

#include <atomic>

namespace sfa::test {

struct Faults {
  std::atomic<int> calls{0};
  std::atomic<int> kill_at{0};           // the number of the call that does not happen
  std::atomic<const char*> failing{""};  // the call that fails...
  std::atomic<int> fail_at{0};           // ...when it is made for the n-th time...
  std::atomic<int> error{0};             // ...with this errno
  std::atomic<int> of_kind{0};           // calls of that kind so far
  std::atomic<int> short_write{0};       // at most so many bytes a pwrite
  std::atomic<bool> no_exchange{false};  // the file system cannot exchange two folders
  std::atomic<bool> hold_fsync{false};   // fsync waits as long as this is set

  void fail(const char* call, int at, int with) {
    failing = call;
    fail_at = at;
    error = with;
    of_kind = 0;
  }
  void heal() { failing = ""; }
};
extern Faults faults;

}  // namespace sfa::test
