// Runs that meet NaN, spikes and kills: what is skipped, where they stop, what they go back to, and that the end is the
// same bit for bit however often they were interrupted.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "checkpoint/run_fixture.h"
#include "core/log.h"
#include "train/guard_watch.h"
#include "train/trainer.h"

namespace sfa::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
using Hook = std::function<void(TrainingState&, std::int64_t, std::int64_t)>;

float& element(TrainingState& state, const Tensor& flat, const char* name) {
  return flat.as<float>()[state.model().parameters().find(name)->offset + 3];
}
Hook spoil_gradient(std::int64_t sample, float value, const char* name = "h.0.mlp.up.weight") {
  return [=](TrainingState& state, std::int64_t, std::int64_t first_sample) {
    if (first_sample == sample) element(state, state.buffers().gradients, name) = value;
  };
}
void scale_loss(TrainingState& state, double factor) {
  *static_cast<double*>(state.loss_total().data) *= factor;
}

// A checkpoint every 5 of 24 steps of 4 samples.
struct GuardRun : RunFixture {
  using Overrides = std::vector<std::string>;

  pid_t begin(const std::string& output, Overrides overrides, const Hook& hook) const {
    const pid_t child = ::fork();
    if (child != 0) return child;
    const int err = ::open((folder.path() / "err.txt").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (::chdir(folder.path().c_str()) != 0 || ::dup2(err, 2) < 0) ::_exit(126);
    int code = 1;
    try {
      start_logging();
      Overrides all{"output_dir=" + output, "resume=auto", "checkpoint.every=5", "train.log_every=4"};
      all.insert(all.end(), overrides.begin(), overrides.end());
      code = ::sfa::train(load_config("run.yaml", all), {}, {hook});
    } catch (const std::exception& e) {
      std::fprintf(stderr, "sfa: %s\n", e.what());
    }
    std::fflush(nullptr);
    ::_exit(code);
  }
  [[nodiscard]] int run(const std::string& output, const Overrides& overrides, const Hook& hook) const {
    const int status = wait_for(begin(output, overrides, hook));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  [[nodiscard]] bool said(const std::string& what) const { return errors().find(what) != std::string::npos; }
  // State, and every tensor, of the newest checkpoint.
  [[nodiscard]] std::pair<nlohmann::json, std::string> end_of(const std::string& output) const {
    return {CheckpointReader(find_checkpoint(folder.path() / output)).state(), final_bytes(output)};
  }
  static std::map<std::string, std::vector<std::uint32_t>> tensors(const fs::path& checkpoint) {
    CheckpointReader reader(checkpoint);
    std::map<std::string, std::vector<std::uint32_t>> all;
    for (const auto& [name, tensor] : reader.tensors()) {
      all[name].resize(static_cast<std::size_t>(tensor.numel()));
      reader.read(name, 0, tensor.numel(), all[name].data());
    }
    return all;
  }
  [[nodiscard]] std::vector<nlohmann::json> metrics(const std::string& output) const {
    std::vector<nlohmann::json> lines;
    std::istringstream text(read_file(folder.path() / output / "metrics.jsonl"));
    for (std::string line; std::getline(text, line);) lines.push_back(nlohmann::json::parse(line));
    return lines;
  }
  [[nodiscard]] std::string newest(const std::string& output) const {
    const auto all = list_checkpoints(folder.path() / output);
    if (all.empty()) return "";
    CheckpointReader reader(all.back());
    reader.verify();
    for (const auto& [name, tensor] : reader.tensors()) {
      std::vector<float> values(static_cast<std::size_t>(tensor.numel()));
      reader.read(name, 0, tensor.numel(), values.data());
      for (float x : values)
        if (!std::isfinite(x)) return name + " is not finite";
    }
    return all.back().filename();
  }
};

TEST_F(GuardRun, SkipLeavesTheUpdateOutAndGoesOn) {
  const Hook count = [](TrainingState& state, std::int64_t step, std::int64_t first_sample) {
    spoil_gradient(24, kNaN)(state, step, first_sample);
    if (first_sample == 40) scale_loss(state, std::numeric_limits<double>::infinity());
  };
  ASSERT_EQ(run("skip", {}, count), 0) << errors();
  EXPECT_TRUE(said("step 7: the gradient is not finite, first in 'h.0.mlp.up.weight' (1 of 16 tensors)")) << errors();
  EXPECT_TRUE(said("step 11: the loss is inf, the gradient is finite")) << errors();
  EXPECT_EQ(newest("skip"), "step_00000024");
  const auto [state, bytes] = end_of("skip");
  EXPECT_EQ(state.at("guard").at("updates"), kSteps - 2);
  EXPECT_EQ(state.at("guard").at("skipped"), 2);
  EXPECT_EQ(state.at("next_sample"), 4 * kSteps);
  int events = 0;
  for (const nlohmann::json& line : metrics("skip")) {
    events += line.contains("guard/cause") ? 1 : 0;
    if (line.contains("guard/cause") && line.at("step") == 7) {
      EXPECT_EQ(line.at("guard/tensor"), "h.0.mlp.up.weight");
    }
    if (line.contains("train/loss")) {
      EXPECT_EQ(line.at("skipped_steps"), line.at("step") < 7 ? 0 : line.at("step") < 11 ? 1 : 2);
    }
  }
  EXPECT_EQ(events, 2);
  // Left out means left out: a clean run's weights are others, and those after step 6 are the same.
  ASSERT_EQ(run("clean", {}, {}), 0);
  EXPECT_FALSE(final_bytes("clean") == bytes);
}

// What a skipped step leaves behind: nothing but the place in the data.
TEST_F(GuardRun, TheSkippedStepIsAsIfItsDataHadNotBeen) {
  const Hook stop_at_6 = [](TrainingState&, std::int64_t step, std::int64_t) {
    require(step != 7, "the power is cut");
  };
  const Hook skip_6 = spoil_gradient(20, kNaN);
  EXPECT_EQ(run("skip", {"checkpoint.every=1", "checkpoint.keep_last=0"},
                [&](TrainingState& s, std::int64_t step, std::int64_t first) {
                  skip_6(s, step, first);
                  stop_at_6(s, step, first);
                }),
            1);
  EXPECT_EQ(newest("skip"), "step_00000006");
  EXPECT_TRUE(tensors(folder.path() / "skip/step_00000005") == tensors(folder.path() / "skip/step_00000006"));
}

TEST_F(GuardRun, StopEndsWithOneSentenceAndTheLastGoodCheckpoint) {
  for (const bool background : {true, false}) {
    const std::string output = background ? "stop_b" : "stop";
    EXPECT_EQ(run(output, {"train.guard.nonfinite=stop", fmt::format("checkpoint.background={}", background)},
                  spoil_gradient(24, kNaN)),
              1);
    EXPECT_TRUE(said("sfa: step 7: the gradient is not finite, first in 'h.0.mlp.up.weight'")) << errors();
    EXPECT_TRUE(said("the last good checkpoint is " + output + "/step_00000005")) << errors();
    EXPECT_EQ(newest(output), "step_00000005");
    EXPECT_TRUE(leftovers(folder.path() / output).empty());
    // By another choice the run goes on from there.
    EXPECT_EQ(run(output, {"train.guard.nonfinite=skip"}, spoil_gradient(24, kNaN)), 0) << errors();
  }
  EXPECT_EQ(run("early", {"train.guard.nonfinite=stop"}, spoil_gradient(4, kNaN)), 1);
  EXPECT_TRUE(said("there is no checkpoint yet")) << errors();
}

TEST_F(GuardRun, TooManySkipsInARowStop) {
  const Hook always = [](TrainingState& state, std::int64_t step, std::int64_t) {
    if (step >= 7) scale_loss(state, static_cast<double>(kNaN));
  };
  EXPECT_EQ(run("run", {"train.guard.max_skips=4"}, always), 1);
  EXPECT_TRUE(said("sfa: step 11: the loss is nan")) << errors();
  EXPECT_TRUE(said("5 updates in a row were left out (train.guard.max_skips = 4)")) << errors();
  EXPECT_EQ(newest("run"), "step_00000010") << "of finite weights, those of step 6";
}

TEST_F(GuardRun, RollbackGoesBackAndPastTheData) {
  for (const std::int64_t bad : {24, 4}) {
    const std::string output = fmt::format("back_{}", bad), trail = (folder.path() / (output + ".txt")).string();
    const Hook hook = [=](TrainingState& state, std::int64_t step, std::int64_t first_sample) {
      std::ofstream(trail, std::ios::app) << step << ':' << first_sample << ' ';
      spoil_gradient(bad, kNaN)(state, step, first_sample);
    };
    ASSERT_EQ(run(output, {"train.guard.nonfinite=rollback"}, hook), 0) << errors();
    const std::int64_t from = bad == 24 ? 5 : 0;
    std::string expected;
    for (std::int64_t step = 1; step <= bad / 4 + 1; ++step) expected += fmt::format("{}:{} ", step, 4 * step - 4);
    for (std::int64_t step = from + 1; step <= kSteps; ++step)
      expected += fmt::format("{}:{} ", step, bad + 4 * (step - from));
    EXPECT_EQ(read_file(trail), expected);
    EXPECT_TRUE(said(from == 5 ? "; back to " + output + "/step_00000005" : "; back to the beginning")) << errors();
    const auto [state, bytes] = end_of(output);
    EXPECT_EQ(state.at("rollbacks"), 1);
    EXPECT_EQ(state.at("next_sample"), bad + 4 + 4 * (kSteps - from));
    EXPECT_EQ(state.at("guard").at("skipped"), 0);
    // Metrics: every step once, and the rollback.
    std::map<std::int64_t, int> steps;
    int rollbacks = 0;
    for (const nlohmann::json& line : metrics(output)) {
      if (line.contains("rollback"))
        ++rollbacks;
      else if (line.contains("train/loss"))
        ++steps[line.at("step").get<std::int64_t>()];
    }
    EXPECT_EQ(rollbacks, 1);
    for (const auto& [step, count] : steps) EXPECT_EQ(count, 1) << step;
  }
}

TEST_F(GuardRun, RollbacksHaveALimit) {
  const Hook hook = [](TrainingState& state, std::int64_t, std::int64_t first_sample) {
    if (first_sample >= 24) element(state, state.buffers().gradients, "norm_f.bias") = kNaN;
  };
  EXPECT_EQ(run("run", {"train.guard.nonfinite=rollback", "train.guard.max_rollbacks=2"}, hook), 1);
  EXPECT_TRUE(said("the run went back 2 times already (train.guard.max_rollbacks)")) << errors();
  EXPECT_TRUE(said("(rollback 2 of 2)")) << errors();
  EXPECT_EQ(newest("run"), "step_00000005");
}

TEST_F(GuardRun, SpikesAreSkipped) {
  const Hook hook = [](TrainingState& state, std::int64_t, std::int64_t first_sample) {
    if (first_sample == 4 * 19) scale_loss(state, 3);
    if (first_sample == 4 * 21) element(state, state.buffers().gradients, "norm_f.bias") = 500;
  };
  const Overrides spikes{"train.guard.spike=skip", "train.guard.window=8", "train.guard.loss_threshold=20",
                         "train.guard.grad_norm_threshold=30"};
  ASSERT_EQ(run("run", spikes, hook), 0) << errors();
  EXPECT_TRUE(said("step 20: the loss")) << errors();
  EXPECT_TRUE(said("step 22: the gradient's norm 500")) << errors();
  EXPECT_TRUE(said("largest in 'norm_f.bias' (norm 500 of 500)")) << errors();
  EXPECT_EQ(end_of("run").first.at("guard").at("skipped"), 2);
}

// A weight that overflows by itself is caught where it would be saved.
TEST_F(GuardRun, WhatIsNotFiniteIsNotSaved) {
  const Hook hook = [](TrainingState& state, std::int64_t step, std::int64_t) {
    if (step == 10) element(state, state.buffers().v, "h.0.attn.proj.bias") = std::numeric_limits<float>::infinity();
  };
  EXPECT_EQ(run("run", {}, hook), 1);
  EXPECT_TRUE(said("sfa: step 10: 'adam_v/h.0.attn.proj.bias' is not finite")) << errors();
  EXPECT_EQ(newest("run"), "step_00000005");
}

// Skips, spikes, rollbacks, average, noise and stochastic rounding: all their state is in the checkpoint.
TEST_F(GuardRun, InterruptedRunsEndBitForBit) {
  const Overrides guards{"train.guard.spike=skip", "train.guard.window=6",      "train.guard.nonfinite=rollback",
                         "train.ema_decay=0.9",    "train.ema_validation=true", "train.noise_scale=true"};
  const Overrides bf16{"train.dtype=bf16", "train.stochastic_rounding=true", "train.ema_decay=0.9"};
  Overrides no_master = bf16;
  no_master.emplace_back("train.master_weights=none");
  const Hook faults = [](TrainingState& state, std::int64_t step, std::int64_t first_sample) {
    spoil_gradient(48, kNaN)(state, step, first_sample);
    if (first_sample == 72 || first_sample == 76) scale_loss(state, 5);
  };
  // The update before a checkpoint is left out: weights stay as an earlier update rounded them.
  const Hook skip_before_save = spoil_gradient(36, kNaN);
  int number = 0;
  for (const auto& [overrides, hook] :
       {std::pair{guards, faults}, std::pair{bf16, skip_before_save}, std::pair{no_master, skip_before_save}}) {
    const std::string calm = fmt::format("calm_{}", number), cut = fmt::format("cut_{}", number);
    ASSERT_EQ(run(calm, overrides, hook), 0) << errors();
    const auto expected = end_of(calm);
    EXPECT_GT(expected.first.at("guard").at("skipped").get<int>(), 0);
    EXPECT_EQ(expected.first.at("rollbacks"), number == 0 ? 1 : 0);
    for (const std::int64_t moment : {2, 11, 13, 19, 24}) {
      const Hook power_cut = [&, h = hook](TrainingState& state, std::int64_t step, std::int64_t first_sample) {
        h(state, step, first_sample);
        require(step != moment, "the power is cut");
      };
      EXPECT_EQ(run(cut, overrides, power_cut), 1);
      // Killed wherever it is.
      const pid_t child = begin(cut, overrides, hook);
      ::usleep(static_cast<useconds_t>(1000 * (moment * 37 % 150)));
      ::kill(child, SIGKILL);
      wait_for(child);
      ASSERT_EQ(run(cut, overrides, hook), 0) << errors();
      EXPECT_TRUE(end_of(cut) == expected) << "variant " << number << ", cut at " << moment;
      fs::remove_all(folder.path() / cut);
    }
    ++number;
  }
}

TEST_F(GuardRun, WithoutMastersTheWeightsAreBf16AndLearn) {
  const Overrides none{"train.dtype=bf16", "train.stochastic_rounding=true", "train.master_weights=none"};
  ASSERT_EQ(run("run", none, {}), 0) << errors();
  CheckpointReader reader(find_checkpoint(folder.path() / "run"));
  for (const auto& [name, tensor] : reader.tensors()) {
    if (!name.starts_with("param/")) continue;
    std::vector<float> values(static_cast<std::size_t>(tensor.numel()));
    reader.read(name, 0, tensor.numel(), values.data());
    for (float x : values) ASSERT_EQ(x, round_to_bf16(x)) << name;
  }
  ASSERT_EQ(run("fp32", {}, {}), 0) << errors();
  const auto loss = [&](const char* output) { return metrics(output).back().at("train/loss").get<double>(); };
  EXPECT_NEAR(loss("run"), loss("fp32"), 0.1);
}

// Validation with the average is what `sfa eval perplexity --ema` says of the checkpoint.
TEST_F(GuardRun, TheAverageIsEvaluated) {
  ASSERT_EQ(exit_code({"data", "tokenize", "--tokenizer", "bytes", "--val-fraction", "0.2", "--output", "val.h5",
                       "text.txt"}),
            0)
      << errors();
  for (const char* dtype : {"fp32", "bf16"}) {
    const std::string output = std::string("run_") + dtype;
    ASSERT_EQ(run(output,
                  {"data.train=val.h5", "train.ema_decay=0.8", "train.ema_validation=true",
                   std::string("train.dtype=") + dtype},
                  {}),
              0)
        << errors();
    const nlohmann::json line = metrics(output).back();
    EXPECT_NE(line.at("val/ema_loss"), line.at("val/loss"));
    for (const bool average : {true, false}) {
      std::vector<std::string> command{"eval",         "perplexity", "--checkpoint", output, "--data",   "val.h5",
                                       "--batch-size", "2",          "--dtype",      dtype,  "--device", "cpu",
                                       "--json"};
      if (average) command.emplace_back("--ema");
      ASSERT_EQ(exit_code(command), 0) << errors();
      const auto result = nlohmann::json::parse(read_file(folder.path() / "out.txt"));
      EXPECT_EQ(result.at("loss"), line.at(average ? "val/ema_loss" : "val/loss"));
    }
  }
  ASSERT_EQ(run("plain", {"data.train=val.h5"}, {}), 0) << errors();
  EXPECT_EQ(exit_code({"eval", "perplexity", "--checkpoint", "plain", "--data", "val.h5", "--ema"}), 1);
  EXPECT_TRUE(said("has no average of the weights")) << errors();
}

TEST(GuardJson, ComesBackAsWritten) {
  GuardState s;
  s.updates = 12;
  s.skipped = 3;
  s.in_a_row = 1;
  s.seen = 9;
  s.noise_square = 0.1;
  s.noise_trace = 1e-300;
  const std::vector<float> window{1.1f, 2.2f, 3.3e-30f, 4.4e30f};
  const nlohmann::json state = nlohmann::json::parse(nlohmann::json{{"guard", guard_json(s, window)}}.dump());
  const SavedGuard back = parse_guard(state, 5, 2, "x");
  EXPECT_EQ(guard_json(back.state, back.window), guard_json(s, window));
  EXPECT_EQ(parse_guard(state, 5, 3, "x").state.seen, 0) << "another window begins anew";
  EXPECT_EQ(parse_guard({{"step", 5}}, 5, 2, "x").state.updates, 5) << "a checkpoint of before";
  nlohmann::json bad = state;
  bad["guard"]["seen"] = "many";
  EXPECT_THROW((void)parse_guard(bad, 5, 2, "x"), Error);
  bad["guard"]["seen"] = -1;
  EXPECT_THROW((void)parse_guard(bad, 5, 2, "x"), Error);
}

}  // namespace
}  // namespace sfa::test
