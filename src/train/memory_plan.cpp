#include "train/memory_plan.h"

#include <algorithm>

#include "core/build_config.h"
#include "core/device_cuda.h"
#include "core/memory.h"
#include "core/progress.h"

namespace sfa {
namespace {

std::size_t sum(const std::vector<MemoryPart>& parts) {
  std::size_t total = 0;
  for (const MemoryPart& p : parts) total += p.bytes;
  return total;
}

std::string text(std::size_t bytes) {
  return bytes_text(static_cast<double>(bytes));
}

// Copies in host memory. Initial weights are made there and given back; from the first checkpoint in the background on
// a copy in f32 of masters, moments and averages stays.
std::vector<MemoryPart> host_copies(const Config& config, const TrainingMemory& memory) {
  const ParameterBuffers& b = memory.buffers;
  const std::size_t initial = static_cast<std::size_t>(b.params.numel()) * sizeof(float);
  const std::size_t copies = b.ema.empty() ? 3 : 4, ranks = static_cast<std::size_t>(memory.place().size);
  // Each rank saves its share, of whatever all of them hold.
  const std::size_t copy = config.checkpoint.background ? copies * (initial / ranks) : 0;
  if (copy >= initial) return {{"copy for checkpoints", copy}};
  return {{"initial weights", initial}};
}

Config with_micro_batch(const Config& config, std::int64_t size) {
  Config c = config;
  c.data.micro_batch_size = size;
  return c;
}

std::size_t total_with(const Config& config, Device device, RankPlace place) {
  return plan_memory(config, TrainingMemory(config, device, place)).total();
}

// The least recomputation with which the run fits into `room` as it is, or nothing.
std::string recomputation(const Config& config, Device device, RankPlace place, std::size_t room) {
  for (const char* how : {"ops", "block"}) {
    Config c = config;
    c.model.recompute = how;
    if (total_with(c, device, place) <= room) return how;
  }
  return "";
}

// What would fit into `room`, as the end of a sentence.
std::string advice(const Config& config, const TrainingMemory& memory, std::size_t room) {
  const Device device = memory.model->device();
  const RankPlace place = memory.place();
  const std::int64_t fits = largest_micro_batch(config, device, room, place).divisor;
  if (fits >= config.data.micro_batch_size) return "";
  const std::string how = recomputation(config, device, place, room);
  const std::string also = how.empty() ? "" : fmt::format("; so would train.recompute={}, at some time a step", how);
  if (fits > 0)
    return fmt::format("; data.micro_batch_size={} would fit ({} was asked for){}", fits, config.data.micro_batch_size,
                       also);
  if (!how.empty()) return fmt::format("; train.recompute={} would fit, at some time a step", how);
  return fmt::format("; not even one sequence at a time would fit, which takes {}",
                     text(total_with(with_micro_batch(config, 1), device, place)));
}

}  // namespace

std::size_t MemoryPlan::total() const {
  return sum(arenas) + sum(beside) + (device == Device::cpu ? sum(host) : 0);
}

MemoryPlan plan_memory(const Config& config, const TrainingMemory& memory) {
  MemoryPlan plan{memory.model->device(), memory.parts(), {}, host_copies(config, memory)};
  if constexpr (kHasCuda) {
    if (plan.device == Device::cuda) {
      const cuda_ops::OwnMemory own = cuda_ops::own_memory();
      plan.beside = {{"cuBLASLt workspace", own.workspace}, {"CUDA context and kernels", own.context + own.later}};
    }
  }
  return plan;
}

MicroBatches largest_micro_batch(const Config& config, Device device, std::size_t room, RankPlace place) {
  const auto fits = [&](std::int64_t size) {
    return total_with(with_micro_batch(config, size), device, place) <= room;
  };
  if (!fits(1)) return {};
  // Rows of a micro-batch are counted in 31 bits.
  const std::int64_t most = (std::int64_t{1} << 31) / config.data.seq_len - 1;
  std::int64_t good = 1, bad = 2;
  while (bad <= most && fits(bad)) {
    good = bad;
    bad *= 2;
  }
  bad = std::min(bad, most + 1);
  while (bad - good > 1) {
    const std::int64_t middle = good + (bad - good) / 2;
    (fits(middle) ? good : bad) = middle;
  }
  const std::int64_t share = config.data.batch_size / group_place(config, place).groups;
  MicroBatches found{good, std::min(good, share)};
  while (share % found.divisor != 0) --found.divisor;
  return found;
}

void require_memory(const Config& config, const TrainingMemory& memory, const MemoryLimits& limits) {
  const Device device = memory.model->device();
  const MemoryPlan plan = plan_memory(config, memory);
  std::size_t taken = 0;  // of the plan, before this check
  if constexpr (kHasCuda) {
    if (device == Device::cuda) {
      const cuda_ops::OwnMemory own = cuda_ops::own_memory();
      taken = own.workspace + own.context;
    }
  }
  const std::size_t there = limits.device ? *limits.device : memory_of(device).free, needed = plan.total() - taken;
  require(needed <= there, "not enough {}: the run needs {} ({}), {} are free{}",
          device == Device::cuda ? "GPU memory" : "memory", text(needed),
          describe(device == Device::cuda ? plan.arenas : [&] {
            std::vector<MemoryPart> all = plan.arenas;
            all.insert(all.end(), plan.host.begin(), plan.host.end());
            return all;
          }()),
          text(there), advice(config, memory, there + taken));
  if (device == Device::cpu) return;
  const std::size_t host = limits.host ? *limits.host : host_memory().free;
  require(sum(plan.host) <= host, "not enough host memory: the run needs {} ({}), {} are free{}", text(sum(plan.host)),
          describe(plan.host), text(host),
          config.checkpoint.background ? "; checkpoint.background=false needs none for checkpoints" : "");
}

std::string describe(const std::vector<MemoryPart>& parts) {
  std::string all;
  for (const MemoryPart& p : parts)
    if (p.bytes > 0) all += fmt::format("{}{} {}", all.empty() ? "" : ", ", p.name, text(p.bytes));
  return all;
}

}  // namespace sfa
