// The plan of a run's memory against what the run takes, and runs that do not fit.
#include <gtest/gtest.h>
#include <malloc.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "data/tokenize.h"
#include "tokenizer/tokenizer.h"
#include "train/trainer.h"

namespace sfa::test {
namespace {
namespace fs = std::filesystem;

Config small(const std::vector<std::string>& more = {}) {
  std::vector<std::string> overrides{"output_dir=none",
                                     "device=cpu",
                                     "model.vocab_size=257",
                                     "model.num_hidden_layers=2",
                                     "model.num_attention_heads=4",
                                     "model.hidden_size=64",
                                     "model.max_position_embeddings=96",
                                     "data.batch_size=24",
                                     "data.micro_batch_size=4"};
  overrides.insert(overrides.end(), more.begin(), more.end());
  return parse_config("", "", overrides);
}

Batch batch_of(const Config& config) {
  Batch batch;
  const std::int64_t N = config.data.micro_batch_size * config.data.seq_len;
  for (std::int64_t i = 0; i < N; ++i) batch.tokens.push_back(static_cast<std::int32_t>(i * 31 % 257));
  batch.targets = batch.tokens;
  batch.first_key.assign(static_cast<std::size_t>(N), 0);
  return batch;
}

// Bytes that the allocator has given out.
std::size_t allocated() {
  const struct mallinfo2 info = ::mallinfo2();
  return info.uordblks + info.hblkhd;
}

// False where another allocator stands in for the system's (sanitizers).
bool allocations_are_seen() {
  constexpr std::size_t kBytes = 4 << 20;
  const std::size_t before = allocated();
  const Buffer block(Device::cpu, kBytes, "a test");
  return block.data() != nullptr && allocated() >= before + kBytes;
}

std::size_t sum(const std::vector<MemoryPart>& parts) {
  std::size_t total = 0;
  for (const MemoryPart& p : parts) total += p.bytes;
  return total;
}

TEST(TrainingMemory, PlanIsWhatIsBound) {
  for (const std::vector<std::string>& variant : std::vector<std::vector<std::string>>{
           {},
           {"model.attention.type=sfa", "model.attention.k=4"},
           {"model.attention.type=sfa", "model.attention.k=4", "model.attention.impl=reference"},
           {"model.num_key_value_heads=2", "model.attention.window=16", "model.attention.qk_head_dim=32"},
           {"data.document_mask=true", "data.micro_batch_size=12", "data.seq_len=33"},
           {"train.dtype=bf16"}}) {
    const Config config = small(variant);
    SCOPED_TRACE(dump_config(config));
    const TrainingMemory counted(config, Device::cpu);
    const std::vector<MemoryPart> planned = counted.parts();
    EXPECT_EQ(counted.buffers.params.data, nullptr);
    const std::size_t before = allocated();
    TrainingState state(config, Device::cpu);
    const std::size_t taken = allocated() - before;
    state.initialize(1);
    const Batch batch = batch_of(config);
    for (int step = 0; step < 2; ++step) {
      state.begin_step(state.context());
      state.micro_step(state.context(), batch, 1.0f / static_cast<float>(batch.tokens.size()));
      state.update(state.context(), step);
    }
    state.model().evaluate(state.context(), state.arenas(), state.upload(state.context(), batch), state.losses());
    const std::vector<MemoryPart> bound = state.memory().parts();
    ASSERT_EQ(planned.size(), bound.size());
    for (std::size_t i = 0; i < planned.size(); ++i) {
      EXPECT_EQ(planned[i].name, bound[i].name);
      EXPECT_EQ(planned[i].bytes, bound[i].bytes) << planned[i].name;
      EXPECT_GT(planned[i].bytes, 0u) << planned[i].name;
    }
    if (!allocations_are_seen()) continue;
    // Beside the arenas there are only the parameters' names, the table of blocks and the like.
    EXPECT_GE(taken, sum(planned));
    EXPECT_LE(taken, sum(planned) + 300'000);
  }
}

TEST(TrainingMemory, LargestMicroBatchIsTheLargest) {
  const Config config = small();
  const auto total = [&](std::int64_t size) {
    Config c = config;
    c.data.micro_batch_size = size;
    return plan_memory(c, TrainingMemory(c, Device::cpu)).total();
  };
  for (const std::int64_t size : {1, 3, 7, 24, 1000}) {
    EXPECT_EQ(largest_micro_batch(config, Device::cpu, total(size)).any, size);
    EXPECT_EQ(largest_micro_batch(config, Device::cpu, total(size + 1) - 1).any, size);
  }
  EXPECT_EQ(largest_micro_batch(config, Device::cpu, total(7)).divisor, 6);
  EXPECT_EQ(largest_micro_batch(config, Device::cpu, total(100)).divisor, 24);
  EXPECT_EQ(largest_micro_batch(config, Device::cpu, total(1) - 1).any, 0);
}

std::string refusal(const Config& config, std::size_t limit) {
  try {
    TrainingState state(config, Device::cpu, {limit, {}});
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(TrainingMemory, RefusesWhatDoesNotFitAndSaysWhatWould) {
  const Config config = small();
  const std::size_t needed = plan_memory(config, TrainingMemory(config, Device::cpu)).total();
  EXPECT_EQ(refusal(config, needed), "");
  const std::string sentence = refusal(config, needed - 1);
  for (const char* word : {"not enough memory", "activations", "data.micro_batch_size=3 would fit", "4 was asked for"})
    EXPECT_NE(sentence.find(word), std::string::npos) << word << " in: " << sentence;
  EXPECT_NE(refusal(config, 1000).find("not even one sequence"), std::string::npos) << refusal(config, 1000);
}

TEST(TrainingMemory, RecomputationIsNamedWhereItIsEnough) {
  const auto total = [](const Config& c) { return plan_memory(c, TrainingMemory(c, Device::cpu)).total(); };
  const Config none = small({"data.micro_batch_size=24"}),
               block = small({"data.micro_batch_size=24", "train.recompute=block"});
  ASSERT_LT(total(block), total(none));
  const std::string sentence = refusal(none, total(block));
  EXPECT_NE(sentence.find("train.recompute=block"), std::string::npos) << sentence;
  EXPECT_EQ(refusal(none, total(block) - 1).find("train.recompute"), std::string::npos);
}

// A run that does not fit leaves no trace: neither a folder nor a file in it.
TEST(TrainingMemory, RefusedRunCreatesNothing) {
  const fs::path top = fs::temp_directory_path() / ("sfa_train_memory_" + std::to_string(::getpid()));
  fs::remove_all(top);
  fs::create_directories(top);
  std::ofstream(top / "text.txt") << std::string(20'000, 'x');
  TokenizeOptions options;
  options.source.inputs = {(top / "text.txt").string()};
  options.output.path = (top / "data.h5").string();
  tokenize(options, *load_tokenizer("bytes"));
  Config config = small();
  config.data.train = options.output.path;
  config.output_dir = (top / "run").string();
  EXPECT_THROW(train(config, {std::size_t{100'000}, {}}), Error);
  EXPECT_FALSE(fs::exists(config.output_dir));
  fs::create_directories(config.output_dir);
  EXPECT_THROW(train(config, {std::size_t{100'000}, {}}), Error);
  EXPECT_TRUE(fs::is_empty(config.output_dir));
  fs::remove_all(top);
}

}  // namespace
}  // namespace sfa::test
