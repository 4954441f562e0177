// How much memory the machine can still give.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/device.h"

namespace sfa {

struct MemoryThere {
  std::size_t free = 0, total = 0;  // bytes
};

/// Of the host: what the kernel calls available (free pages and caches it would give up), or less where a control group
/// (a container, a batch system's job) leaves less. `root` stands before /proc and /sys, for tests.
MemoryThere host_memory(const std::string& root = "");

/// Of the host or of the current GPU, which must be there.
MemoryThere memory_of(Device device);

/// "141GB", "80 GiB", "512MB", a number of bytes alone: GB are powers of 1000, GiB of 1024. Throws UsageError that
/// names `what` when the text is none of these.
std::size_t parse_bytes(const std::string& text, const std::string& what);

}  // namespace sfa
