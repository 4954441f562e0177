// What `sfa plan` foretells against what a card shows while training: every arena to the byte, and the peak of the
// whole process, polled while it trains, within 3 %.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "core/device_cuda.h"
#include "train/trainer.h"

namespace sfa::test {
namespace {

// Watches what is taken on the card, by everybody.
class Watch {
 public:
  Watch()
      : thread_([this] {
          while (!stop_) {
            const auto [free, total] = cuda_ops::memory_free_total();
            most_ = std::max(most_, total - free);
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
          }
        }) {}
  ~Watch() { stop(); }
  std::size_t stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
    const auto [free, total] = cuda_ops::memory_free_total();
    return std::max(most_, total - free);
  }

 private:
  std::atomic<bool> stop_{false};
  std::size_t most_ = 0;
  std::thread thread_;
};

struct Case {
  const char* name;
  std::vector<std::string> overrides;
};

class MemoryGpu : public ::testing::TestWithParam<Case> {};

TEST_P(MemoryGpu, PeakIsWhatWasPlanned) {
  std::string why;
  if (!cuda_available(&why)) GTEST_SKIP() << why;
  std::vector<std::string> overrides{"output_dir=none", "model.vocab_size=50257", "data.batch_size=64"};
  overrides.insert(overrides.end(), GetParam().overrides.begin(), GetParam().overrides.end());
  const Config config = parse_config("", "", overrides);
  const MemoryPlan plan = plan_memory(config, TrainingMemory(config, Device::cuda));
  // With the context alone there, all else that is taken belongs to others.
  const auto [free, total] = cuda_ops::memory_free_total();
  const cuda_ops::OwnMemory own = cuda_ops::own_memory();
  const std::size_t before = total - free;
  if (before > own.context + (std::size_t{1} << 30)) GTEST_SKIP() << "others use the card: " << before << " bytes";

  Watch watch;
  TrainingState state(config, Device::cuda);
  const auto planned = plan.arenas, bound = state.memory().parts();
  ASSERT_EQ(planned.size(), bound.size());
  for (std::size_t i = 0; i < bound.size(); ++i) EXPECT_EQ(planned[i].bytes, bound[i].bytes) << bound[i].name;
  state.initialize(1);
  Batch batch;
  const std::int64_t N = config.data.micro_batch_size * config.data.seq_len;
  for (std::int64_t i = 0; i < N; ++i) batch.tokens.push_back(static_cast<std::int32_t>(i * 7919 % 50257));
  batch.targets = batch.tokens;
  batch.first_key.assign(static_cast<std::size_t>(N), 0);
  Context& ctx = state.context();
  const auto after_init = cuda_ops::memory_free_total().first;
  for (std::int64_t step = 0; step < 2; ++step) {
    state.begin_step(ctx);
    for (int m = 0; m < 2; ++m) state.micro_step(ctx, batch, 1.0f / static_cast<float>(2 * N));
    state.update(ctx, step);
    ctx.synchronize();
  }
  state.model().evaluate(ctx, state.arenas(), state.upload(ctx, batch), state.losses());
  ctx.synchronize();
  const std::size_t at_end = total - cuda_ops::memory_free_total().first, peak = watch.stop();
  const double ratio = static_cast<double>(plan.total()) / static_cast<double>(peak);
  constexpr double kMiB = 1 << 20;
  std::printf(
      "%-16s planned %8.1f MiB (arenas %.1f)  peak %8.1f MiB  ratio %.4f  | before %.1f, after start %.1f, end %.1f\n",
      GetParam().name, static_cast<double>(plan.total()) / kMiB, static_cast<double>(state.memory().bytes()) / kMiB,
      static_cast<double>(peak) / kMiB, ratio, static_cast<double>(before) / kMiB,
      static_cast<double>(total - after_init) / kMiB, static_cast<double>(at_end) / kMiB);
  EXPECT_NEAR(ratio, 1.0, 0.03);
}

TEST(MemoryGpuLimit, WhatTheCardCannotHoldIsRefusedBeforeItIsAllocated) {
  std::string why;
  if (!cuda_available(&why)) GTEST_SKIP() << why;
  const auto config_of = [](const char* micro_batch) {
    return parse_config("", "",
                        {"output_dir=none", "model.vocab_size=50257", "data.batch_size=8192",
                         std::string("data.micro_batch_size=") + micro_batch});
  };
  const auto refusal = [](const Config& config, const MemoryLimits& limits) -> std::string {
    try {
      TrainingState(config, Device::cuda, limits);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const Context holds_the_context(Device::cuda);
  const std::size_t before = cuda_ops::memory_free_total().first;
  const std::string all = refusal(config_of("8192"), {});
  for (const char* word : {"not enough GPU memory", "activations", "data.micro_batch_size=", "8192 was asked for"})
    EXPECT_NE(all.find(word), std::string::npos) << word << " in: " << all;
  const std::string some = refusal(config_of("16"), {std::size_t{4'000'000'000}, {}});
  EXPECT_NE(some.find("would fit (16 was asked for)"), std::string::npos) << some;
  EXPECT_NE(refusal(config_of("1"), {{}, std::size_t{1'000'000}}).find("checkpoint.background=false"),
            std::string::npos);
  EXPECT_LE(before - std::min(before, cuda_ops::memory_free_total().first), std::size_t{48} << 20);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, MemoryGpu,
    ::testing::Values(Case{"dense_64", {"data.micro_batch_size=64"}}, Case{"dense_8", {"data.micro_batch_size=8"}},
                      Case{"sfa_64", {"data.micro_batch_size=64", "model.attention.type=sfa", "model.attention.k=8"}},
                      Case{"masked_bf16",
                           {"data.micro_batch_size=16", "data.document_mask=true", "train.grad_dtype=bf16"}},
                      Case{"fp32_8", {"data.micro_batch_size=8", "train.dtype=fp32"}},
                      Case{"wide_16",
                           {"data.micro_batch_size=16", "model.hidden_size=1024", "model.num_hidden_layers=24",
                            "model.num_attention_heads=16"}},
                      Case{"qwen3_sfa_4",
                           {"data.micro_batch_size=4", "model.arch=qwen3", "model.num_hidden_layers=28",
                            "model.hidden_size=1024", "model.num_attention_heads=16", "model.num_key_value_heads=8",
                            "model.head_dim=128", "model.attention.type=sfa", "model.attention.k=16",
                            "model.attention.rope_projection=shared", "train.recompute=ops"}}),
    [](const auto& which) { return std::string(which.param.name); });

}  // namespace
}  // namespace sfa::test
