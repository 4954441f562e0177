// Runs as every rank of a job and looks at what the ranks do together; exit code 0 when all is as it should be.
//   ranks_program collectives cpu|cuda         every operation of the communicator against sums made on one rank
//   ranks_program train FAULT CONFIG [key=value...]
//     FAULT: none | nan:R:S (rank R's gradient is NaN at step S) | throw:R:S | hang:R:S | die:R:S
//            | slow:R:S (no fault: rank R takes 1.2 s for each block of step S + 1, and then for its backward)
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <limits>
#include <thread>

#include "config/config.h"
#include "core/log.h"
#include "dist/collectives_check.h"
#include "train/trainer.h"

namespace sfa::test {
namespace {

int collectives(const std::string& device) {
  const Device where = device == "cuda" ? Device::cuda : Device::cpu;
  const auto ranks = make_communicator(read_launch(process_environment), where, 30,
                                       [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); });
  Checker checker(*ranks, where);
  bool copied = false;
  try {
    checker.all();
    copied = checker.shared();
  } catch (const std::exception& e) {
    ranks->control().give_up(e.what());
  }
  if (ranks->rank() == 0)
    std::printf("%d ranks over %s%s: all operations are right\n", ranks->size(), ranks->backend().c_str(),
                copied ? " and by copy engines" : "");
  return 0;
}

struct Fault {
  std::string kind = "none";
  int rank = -1;
  std::int64_t step = 0;
};

Fault parse_fault(const std::string& text) {
  Fault f;
  f.kind = text.substr(0, text.find(':'));
  if (f.kind != "none") std::sscanf(text.c_str() + f.kind.size(), ":%d:%ld", &f.rank, &f.step);
  return f;
}

// Until the next step's update.
void slow_down(Model& model, bool slow) {
  static decltype(model.on_attention) usual_attention;
  static decltype(model.on_gradients_final) usual_final;
  constexpr std::chrono::milliseconds kPause(1200);
  if (!slow) {
    model.on_attention = usual_attention;
    model.on_gradients_final = usual_final;
    return;
  }
  usual_attention = model.on_attention;
  usual_final = model.on_gradients_final;
  model.on_attention = [=](std::int64_t layer, const AttentionState& state) {
    std::this_thread::sleep_for(kPause);
    if (usual_attention) usual_attention(layer, state);
  };
  model.on_gradients_final = [=](std::int64_t begin, std::int64_t end) {
    std::this_thread::sleep_for(kPause);
    if (usual_final) usual_final(begin, end);
  };
}

int run_training(const Fault& fault, const std::string& file, const std::vector<std::string>& overrides) {
  const int rank = read_launch(process_environment).rank;
  const TrainHooks hooks{[&](TrainingState& state, std::int64_t step, std::int64_t) {
    if (fault.rank != rank) return;
    if (fault.kind == "slow" && step == fault.step + 1) slow_down(state.model(), false);
    if (fault.step != step) return;
    if (fault.kind == "slow") slow_down(state.model(), true);
    if (fault.kind == "throw") fail("a fault that was asked for");
    if (fault.kind == "hang") std::this_thread::sleep_for(std::chrono::hours(1));
    if (fault.kind == "die") ::kill(::getpid(), SIGKILL);
    if (fault.kind == "nan") {
      Context& ctx = state.context();
      const Tensor& loss = state.loss_total();
      const double nan = std::numeric_limits<double>::quiet_NaN();
      ctx.copy(loss.data, loss.device, &nan, Device::cpu, sizeof nan);
      ctx.synchronize();
    }
  }};
  return train(load_config(file, overrides), {}, hooks);
}

}  // namespace
}  // namespace sfa::test

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  sfa::start_logging();
  try {
    if (words.size() == 2 && words[0] == "collectives") return sfa::test::collectives(words[1]);
    if (words.size() >= 3 && words[0] == "train")
      return sfa::test::run_training(sfa::test::parse_fault(words[1]), words[2], {words.begin() + 3, words.end()});
    std::fprintf(stderr, "usage: ranks_program collectives cpu|cuda | train FAULT CONFIG [key=value...]\n");
    return 2;
  } catch (const std::exception& e) {
    if (*e.what() != '\0') std::fprintf(stderr, "ranks_program: %s\n", e.what());
    return 1;
  }
}
