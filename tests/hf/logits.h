// Logits of a loaded model at every position, and the text it would write.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/model_checkpoint.h"
#include "core/arena.h"
#include "eval/generate.h"
#include "eval/loaded_model.h"

namespace sfa::test {

/// cpu, and cuda where there is a card.
inline std::vector<std::string> devices() {
  std::string why;
  return cuda_available(&why) ? std::vector<std::string>{"cpu", "cuda"} : std::vector<std::string>{"cpu"};
}

/// In fp32.
inline LoadedModel load(const std::string& path, const std::string& device = "cpu") {
  LoadOptions options;
  options.path = path;
  options.device = device;
  options.dtype = "fp32";
  return LoadedModel(options);
}

/// [T][V]: fed one token at a time through the caches.
inline std::vector<std::vector<float>> logits_of(LoadedModel& loaded, const std::vector<std::int32_t>& tokens) {
  std::vector<std::vector<float>> all;
  const auto generation =
      loaded.model().start_generation(loaded.context(), 1, static_cast<std::int64_t>(tokens.size()), 1);
  Context& ctx = loaded.context();
  const Buffer buffer(ctx.device(), sizeof(std::int32_t), "a token");
  const Tensor input(buffer.data(), DType::i32, ctx.device(), {1, 1});
  for (const std::int32_t token : tokens) {
    ctx.copy(input.data, input.device, &token, Device::cpu, sizeof token);
    all.push_back(host_values(ctx, loaded.model().feed(ctx, *generation, input)));
    all.back().resize(static_cast<std::size_t>(loaded.config().model.vocab_size));
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
