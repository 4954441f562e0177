// Errors are exceptions that carry one sentence for the user: what was wrong, where, and what would be right.
// main() prints the sentence and turns the type into the exit code: Error -> 1, UsageError -> 2.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace sfa {

/// A fault that the user can act on: bad input, missing file, full disk, failed device. Exit code 1.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The command line itself was wrong. Exit code 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// Throws Error with a formatted sentence.
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

/// Throws Error with a formatted sentence unless `condition` holds.
template <class... Args>
void require(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) [[unlikely]]
    throw Error(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace sfa
