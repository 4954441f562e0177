// What a run takes in all, and whether it fits: arenas, what CUDA and cuBLASLt take beside them, and copies in host
// memory. Looked at before anything is allocated.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "train/training_memory.h"

namespace sfa {

/// Bytes that a run may take; unset: what is free when it begins.
struct MemoryLimits {
  std::optional<std::size_t> device;  // for arenas: CUDA's own part is not in it
  std::optional<std::size_t> host;
};

struct MemoryPlan {
  Device device = Device::cpu;
  std::vector<MemoryPart> arenas;  // TrainingMemory::parts
  std::vector<MemoryPart> beside;  // GPU: cuBLASLt's workspace, CUDA's context and loaded kernels
  std::vector<MemoryPart> host;    // copies of weights and moments in host memory

  /// Bytes on the device; on the CPU that is host memory, copies included.
  [[nodiscard]] std::size_t total() const;
};

MemoryPlan plan_memory(const Config& config, const TrainingMemory& memory);

/// The largest data.micro_batch_size whose run fits into `room` bytes of the device (MemoryPlan::total), and the
/// largest that also divides a rank's share of data.batch_size; 0 when not even one sequence fits.
struct MicroBatches {
  std::int64_t any = 0, divisor = 0;
};
MicroBatches largest_micro_batch(const Config& config, Device device, std::size_t room, RankPlace place = {});

/// Throws Error with one sentence (needed, there, what would fit) when the run does not fit. On a GPU a context must
/// exist, so that its own memory no longer counts as free.
void require_memory(const Config& config, const TrainingMemory& memory, const MemoryLimits& limits);

/// "weights 248.9 MB, gradients 497.8 MB, ..."
std::string describe(const std::vector<MemoryPart>& parts);

}  // namespace sfa
