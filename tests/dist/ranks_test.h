// Jobs of several ranks under the launcher that users run, mpirun.
#pragma once

#include <nlohmann/json.hpp>

#include "app/program.h"
#include "core/build_config.h"

namespace sfa::test {

class RanksTest : public AppTest {
 protected:
  void SetUp() override {
    if constexpr (!kHasMpi) GTEST_SKIP() << "this build has no MPI";
    ::setenv("OMP_NUM_THREADS", "1", 1);
    AppTest::SetUp();
    write_text(at("run.yaml"), "output_dir: " + at("run") + "\ndevice: cpu\nseed: 3\n" +
                                   "model:\n  num_hidden_layers: 2\n  num_attention_heads: 2\n  hidden_size: 16\n"
                                   "  max_position_embeddings: 16\n  attention: {type: sfa, k: 4}\n"
                                   "data: {train: " +
                                   at("data.h5") +
                                   ", batch_size: 8, micro_batch_size: 2}\n"
                                   "train: {max_steps: 20, lr: 0.01, eval_every: 10, log_every: 1}\n"
                                   "checkpoint: {every: 4, keep_last: 2}\n");
  }

  static std::string ranks_program() {
    const char* named = std::getenv("SFA_RANKS_PROGRAM");
    return named != nullptr ? named : SFA_RANKS_PROGRAM;
  }
  static std::vector<std::string> mpirun(int ranks) {
    return {"mpirun", "--oversubscribe", "--allow-run-as-root", "--bind-to", "none", "-np", std::to_string(ranks)};
  }
  /// `sfa` with these arguments as so many ranks.
  Ended on_ranks(int ranks, std::vector<std::string> arguments) const {
    return Program(std::move(arguments), scratch(), "/dev/null", mpirun(ranks)).wait();
  }
  /// tests/dist/ranks_program.cpp.
  Ended program_on_ranks(int ranks, std::vector<std::string> arguments) const {
    return Program(std::move(arguments), scratch(), "/dev/null", mpirun(ranks), ranks_program()).wait();
  }

  /// A column of metrics.jsonl, in order.
  std::vector<double> column(const std::string& run, const std::string& key) const {
    std::vector<double> values;
    std::ifstream in(at(run) + "/metrics.jsonl");
    for (std::string line; std::getline(in, line);) {
      const nlohmann::json object = nlohmann::json::parse(line);
      if (object.contains(key)) values.push_back(object[key].get<double>());
    }
    return values;
  }
  static double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
    double largest = a.size() == b.size() ? 0 : 1e9;
    for (std::size_t i = 0; i < a.size() && i < b.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
    return largest;
  }
};

}  // namespace sfa::test
