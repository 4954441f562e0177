// What a configuration asks for, before it runs: parameters by group, memory by arena, work a token and a step, and the
// largest micro-batch that fits. Needs no data (with model.vocab_size set) and no device.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "train/memory_plan.h"

namespace sfa {

struct ParameterGroup {
  std::string name;  // embeddings, attention, mlp, norms
  std::int64_t count = 0;
};

/// Parameters of a model by what they belong to, in the order of first use, without the padding of the vocabulary.
std::vector<ParameterGroup> parameter_groups(const Model& model);

struct RunPlan {
  Config config;
  Device device = Device::cpu;
  int ranks = 1;              // memory is that of the first, which has the most
  std::string dtype;          // of weights and activations
  DType stored = DType::f32;  // as they are kept: a CPU that imitates bf16 keeps f32
  std::vector<ParameterGroup> parameters;
  std::int64_t vocabulary_padding = 0;  // elements
  MemoryPlan memory;
  ModelCost cost;
  std::optional<std::size_t> room;  // bytes for everything in `memory` on the device; unset: not known
  MicroBatches fits;                // into that
};

/// Sets model.vocab_size from data.train where it is 0. Throws Error with what to do when neither says it.
void take_vocabulary(Config& config);

/// `room`: bytes that the device has for a run in all. config's vocabulary must be set. Throws Error when `ranks` can't
/// share the batch.
RunPlan plan_run(const Config& config, Device device, std::optional<std::size_t> room, int ranks = 1);

std::string plan_table(const RunPlan& plan);
nlohmann::ordered_json plan_json(const RunPlan& plan);

}  // namespace sfa
