// Logits of a loaded model at every position, and the text it would write.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "eval/generate.h"
#include "eval/loaded_model.h"

namespace sfa::test {

/// On the CPU, in fp32.
inline LoadedModel load_on_cpu(const std::string& path) {
  LoadOptions options;
  options.path = path;
  options.device = "cpu";
  return LoadedModel(options);
}

/// [T][V]: fed one token at a time through the caches.
inline std::vector<std::vector<float>> logits_of(LoadedModel& loaded, const std::vector<std::int32_t>& tokens) {
  std::vector<std::vector<float>> all;
  const auto generation =
      loaded.model().start_generation(loaded.context(), 1, static_cast<std::int64_t>(tokens.size()), 1);
  for (std::int32_t token : tokens) {
    const Tensor logits =
        loaded.model().feed(loaded.context(), *generation, Tensor(&token, DType::i32, Device::cpu, {1, 1}));
    loaded.context().synchronize();
    const float* row = logits.as<float>();
    all.emplace_back(row, row + loaded.config().model.vocab_size);
  }
  return all;
}

inline std::vector<std::int32_t> greedy(LoadedModel& loaded, std::vector<std::int32_t> prompt, std::int64_t count) {
  std::vector<std::int32_t> made;
  GenerateOptions options;
  options.prompt = std::move(prompt);
  options.max_tokens = count;
  options.temperature = 0;
  generate(loaded.context(), loaded.model(), options, [&](std::int32_t token) {
    made.push_back(token);
    return true;
  });
  return made;
}

}  // namespace sfa::test
