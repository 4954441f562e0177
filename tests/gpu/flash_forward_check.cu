// Checks and times the tiled attention forward on the device.
//   flash_forward_check            all checks
//   flash_forward_check time       TFLOP/s of the shapes in docs/benchmarks.md, "forward D N TFLOPs" a line
#include <algorithm>

#include "attention/flash/flash_forward.h"
#include "flash_forward_cases.cuh"

using namespace sfa;
using namespace sfa::test;

namespace {

std::vector<Case> dense_cases() {
  std::vector<Case> cases;
  const auto add = [&](const char* name, flash::Shape s, auto&&... set) {
    Case c;
    c.shape = s;
    (set(c), ...);
    c.name = std::string(name) + " B" + std::to_string(s.B) + " Tq" + std::to_string(s.Tq) + " Tk" +
             std::to_string(s.Tk) + " H" + std::to_string(s.H) + "/" + std::to_string(s.G) + " D" +
             std::to_string(s.Dqk);
    cases.push_back(c);
  };
  const auto full = [](Case& c) { c.causal = false; };
  const auto window = [](int w) { return [w](Case& c) { c.window = w; }; };
  const auto offset = [](int o) { return [o](Case& c) { c.query_offset = o; }; };
  const auto document = [](int d) { return [d](Case& c) { c.document = d; }; };
  const auto amplitude = [](float a) { return [a](Case& c) { c.amplitude = a; }; };
  for (const int d : {64, 128}) {
    for (const int t : {1, 17, 127, 128, 129, 1000, 4097})
      add("causal", {t > 2000 ? 1 : 2, t, t, 4, t % 3 == 1 ? 4 : 2, d, d});
    add("causal", {2, 300, 300, 4, 1, d, d});
    add("causal", {3, 193, 193, 12, 12, d, d});
    add("causal", {1, 2500, 2500, 2, 2, d, d});
    add("full", {2, 17, 17, 2, 2, d, d}, full);
    add("full", {2, 129, 1000, 4, 2, d, d}, full);
    add("full", {1, 1000, 65, 4, 1, d, d}, full);
    for (const int w : {1, 64, 100, 500})
      add(("window" + std::to_string(w)).c_str(), {2, 1000, 1000, 2, 1, d, d}, window(w));
    add("window100 full", {1, 500, 500, 2, 2, d, d}, window(100), full);
    add("documents~40", {2, 1000, 1000, 4, 2, d, d}, document(40));
    add("documents~300", {2, 2300, 2300, 2, 2, d, d}, document(300));
    add("documents~300 window200", {2, 1100, 1100, 2, 2, d, d}, document(300), window(200));
    add("offset871", {2, 129, 1000, 4, 2, d, d}, offset(871));
    add("offset-50", {2, 300, 300, 2, 2, d, d}, offset(-50));
    add("offset-500 (all empty)", {1, 200, 300, 2, 2, d, d}, offset(-500));
    add("offset900 window128", {1, 400, 1000, 2, 2, d, d}, offset(900), window(128));
    add("offset3000 beyond", {1, 200, 1000, 2, 1, d, d}, offset(3000));
    add("one query", {4, 1, 1000, 4, 2, d, d}, offset(999));
    add("amplitude 3", {1, 500, 500, 2, 2, d, d}, amplitude(3.0f));
    add("amplitude 1e4", {1, 300, 300, 2, 2, d, d}, amplitude(1e4f));
  }
  return cases;
}

bool run_checks() {
  int failed = 0;
  const auto cases = dense_cases();
  for (std::size_t i = 0; i < cases.size(); ++i) {
    Problem problem(cases[i]);
    if (i % 2 == 1) problem.params.tile_counter = problem.counter.get();
    const bool small = cases[i].shape.Tq == cases[i].shape.Tk && cases[i].shape.Tq <= 17;
    if (!check_case(
            cases[i], problem, problem.params,
            [](const flash::ForwardParams& p) { flash::forward(p, flash::Product::dense, nullptr); }, small))
      ++failed;
  }
  std::printf("%s: %zu cases, %d failed\n", failed == 0 ? "PASS" : "FAIL", cases.size(), failed);
  return failed == 0;
}

double median_ms(const std::vector<float>& times) {
  auto sorted = times;
  std::sort(sorted.begin(), sorted.end());
  return sorted[sorted.size() / 2];
}

void time_shape(int d, int heads, int n) {
  Case c;
  const int batch = std::max(1, 32768 / n);
  c.shape = {batch, n, n, heads, heads, d, d};
  Problem problem(c);
  problem.params.tile_counter = problem.counter.get();
  cudaEvent_t begin, end;
  SFA_CHECK_CUDA(cudaEventCreate(&begin));
  SFA_CHECK_CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = -3; i < 20; ++i) {
    SFA_CHECK_CUDA(cudaEventRecord(begin));
    flash::forward(problem.params, flash::Product::dense, nullptr);
    SFA_CHECK_CUDA(cudaEventRecord(end));
    SFA_CHECK_CUDA(cudaEventSynchronize(end));
    float ms;
    SFA_CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 0) times.push_back(ms);
  }
  const double flops = 2.0 * batch * heads * static_cast<double>(n) * n * d;
  std::printf("forward %d %d %.1f TFLOP/s %.4f ms\n", d, n, flops / median_ms(times) * 1e-9, median_ms(times));
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc > 1 && std::string(argv[1]) == "time") {
    for (const int n : {1024, 2048, 4096, 16384, 65536}) {
      time_shape(64, 12, n);
      time_shape(128, 16, n);
    }
    return 0;
  }
  return run_checks() ? 0 : 1;
} catch (const std::exception& e) {
  std::printf("FAIL: %s\n", e.what());
  return 1;
}
