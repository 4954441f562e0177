// Checks and times the tiled attention forward on the device.
//   flash_forward_check [check]      all checks
//   flash_forward_check check N      those of at most N rows, for compute-sanitizer
//   flash_forward_check sm80 [N]     those of the sm_80 kernels alone, dense and 2 of 4
//   flash_forward_check time         TFLOP/s of the shapes in docs/benchmarks.md, "forward D N TFLOPs" a line;
//                                    sparse24 includes the selection of queries and keys
//   flash_forward_check time_sizes   all head sizes on the kernels for sm_90a and on those for every card,
//                                    "sm90 DxDV N TFLOPs" or "sm80 ..." a line
//   flash_forward_check time_2of4    all head sizes on the sm_80 kernels, the dense product and that of 2 of 4 over the
//                                    same zero-filled queries (k = D / 8): "filled DxDV N TFLOPs" and "2of4 ..." a line
#include <algorithm>

#include "attention/flash/flash_forward.h"
#include "attention/flash/flash_sm80.h"
#include "gpu/flash_forward_cases.cuh"
#include "gpu/select_check.cuh"

using namespace sfa;
using namespace sfa::test;

namespace {

using HeadSizes = std::vector<std::pair<int, int>>;

/// The instances of the sm_80 kernels.
const HeadSizes kSm80Sizes{{32, 32},  {32, 64},   {64, 64},   {64, 128}, {96, 96},
                           {128, 64}, {128, 128}, {192, 192}, {256, 256}};

std::vector<Case> cases_of(const HeadSizes& sizes) {
  std::vector<Case> cases;
  const auto add = [&](const char* name, flash::Shape s, auto&&... set) {
    Case c;
    c.shape = s;
    (set(c), ...);
    c.name = std::string(name) + " B" + std::to_string(s.B) + " Tq" + std::to_string(s.Tq) + " Tk" +
             std::to_string(s.Tk) + " H" + std::to_string(s.H) + "/" + std::to_string(s.G) + " D" +
             std::to_string(s.Dqk) + (s.Dv == s.Dqk ? "" : "v" + std::to_string(s.Dv));
    cases.push_back(c);
  };
  const auto full = [](Case& c) { c.causal = false; };
  const auto window = [](int w) { return [w](Case& c) { c.window = w; }; };
  const auto offset = [](int o) { return [o](Case& c) { c.query_offset = o; }; };
  const auto document = [](int d) { return [d](Case& c) { c.document = d; }; };
  const auto amplitude = [](float a) { return [a](Case& c) { c.amplitude = a; }; };
  for (const auto& [d, v] : sizes) {
    for (const int t : {1, 17, 127, 128, 129, 1000, 4097})
      add("causal", {t > 2000 ? 1 : 2, t, t, 4, t % 3 == 1 ? 4 : 2, d, v});
    add("causal", {2, 300, 300, 4, 1, d, v});
    add("causal", {3, 193, 193, 12, 12, d, v});
    add("causal", {1, 2500, 2500, 2, 2, d, v});
    add("full", {2, 17, 17, 2, 2, d, v}, full);
    add("full", {2, 129, 1000, 4, 2, d, v}, full);
    add("full", {1, 1000, 65, 4, 1, d, v}, full);
    for (const int w : {1, 64, 100, 500})
      add(("window" + std::to_string(w)).c_str(), {2, 1000, 1000, 2, 1, d, v}, window(w));
    add("window100 full", {1, 500, 500, 2, 2, d, v}, window(100), full);
    add("documents~40", {2, 1000, 1000, 4, 2, d, v}, document(40));
    add("documents~300", {2, 2300, 2300, 2, 2, d, v}, document(300));
    add("documents~300 window200", {2, 1100, 1100, 2, 2, d, v}, document(300), window(200));
    add("offset871", {2, 129, 1000, 4, 2, d, v}, offset(871));
    add("offset-50", {2, 300, 300, 2, 2, d, v}, offset(-50));
    add("offset-500 (all empty)", {1, 200, 300, 2, 2, d, v}, offset(-500));
    add("offset900 window128", {1, 400, 1000, 2, 2, d, v}, offset(900), window(128));
    add("offset3000 beyond", {1, 200, 1000, 2, 1, d, v}, offset(3000));
    add("one query", {4, 1, 1000, 4, 2, d, v}, offset(999));
    add("amplitude 3", {1, 500, 500, 2, 2, d, v}, amplitude(3.0f));
    add("amplitude 1e4", {1, 300, 300, 2, 2, d, v}, amplitude(1e4f));
  }
  if (std::find(sizes.begin(), sizes.end(), std::pair{128, 128}) != sizes.end()) {
    add("causal", {1, 8200, 8200, 1, 1, 128, 128});  // many keys
    add("offset16300", {1, 200, 16500, 2, 1, 128, 128}, offset(16300));
  }
  return cases;
}

/// A few cases of sizes that are filled up with zeros to those of an instance.
void add_filled_sizes(std::vector<Case>& cases, const HeadSizes& sizes) {
  for (const Case& c : cases_of(sizes))
    if (c.shape.Tq <= 17 || c.shape.Tq == 129 || c.document == 40) cases.push_back(c);
}

bool is_small(const Case& c) {
  return c.shape.Tq == c.shape.Tk && c.shape.Tq <= 17;
}

/// Queries selected 2 of 4 and compressed, keys selected exactly and zero-filled; what the oracle multiplies are the
/// same rows zero-filled.
struct Selected {
  DeviceBuffer<__nv_bfloat16> q, k;
  DeviceBuffer<unsigned char> compressed;
  flash::SelectParams queries, keys;

  Selected(const Problem& problem, int active)
      : q(count(problem, problem.params.shape.Tq, problem.params.shape.H)),
        k(count(problem, problem.params.shape.Tk, problem.params.shape.G)),
        compressed(static_cast<std::size_t>(problem.params.shape.B) * problem.params.shape.H *
                   ((problem.params.shape.Tq + 63) / 64) * flash::compressed_block_bytes(problem.params.shape.Dqk)) {
    const flash::ForwardParams& p = problem.params;
    const flash::Shape& s = p.shape;
    queries = select(s, s.Tq, s.H, active, flash::Selection::topk_2of4, p.q, p.q_stride, q.get());
    queries.compressed = compressed.get();
    keys = select(s, s.Tk, s.G, active, flash::Selection::topk, p.k, p.k_stride, k.get());
  }

  void run() const {
    if (queries.T == keys.T) {
      flash::select_features(queries, keys, {}, nullptr);
    } else {
      flash::select_features(queries, nullptr);
      flash::select_features(keys, nullptr);
    }
  }
  /// What a prefill needs: queries for the sparse product alone, keys for the product and for the cache.
  void run_prefill(void* values, std::uint8_t* indices) const {
    flash::SelectParams q_only = queries, k_cached = keys;
    q_only.dense = nullptr;
    k_cached.values = values;
    k_cached.indices = indices;
    flash::select_features(q_only, k_cached, {}, nullptr);
  }
  /// The problem on selected rows, for the oracle, the dense and the sparse product alike.
  flash::ForwardParams on(flash::ForwardParams p) const {
    p.q = q.get();
    p.q_stride = queries.dense_stride;
    p.k = k.get();
    p.k_stride = keys.dense_stride;
    p.q_compressed = compressed.get();
    return p;
  }

 private:
  static std::size_t count(const Problem& problem, int tokens, int heads) {
    return static_cast<std::size_t>(problem.params.shape.B) * tokens * heads * problem.params.shape.Dqk;
  }
  static flash::SelectParams select(const flash::Shape& s, int tokens, int heads, int active, flash::Selection rule,
                                    const void* x, const flash::Strides& stride, void* dense) {
    flash::SelectParams p;
    p.B = s.B, p.T = tokens, p.heads = heads, p.D = s.Dqk, p.k = active, p.rule = rule;
    p.x = x, p.x_stride = stride, p.dense = dense;
    p.dense_stride = {std::int64_t{tokens} * heads * s.Dqk, std::int64_t{heads} * s.Dqk, s.Dqk};
    return p;
  }
};

bool run_selection_checks() {
  bool good = true;
  for (const int d : {64, 128})
    for (const bool ties : {false, true})
      for (const int k : {1, 3, 7, 8, 9, 12, 16, 17, d / 2})
        for (const bool beside : {false, true}) {
          good &= check_selection({2, 130, 3, d, k, flash::Selection::topk, ties}, beside);
          good &= check_selection({2, 130, 3, d, k, flash::Selection::topk_2of4, ties}, beside);
        }
  return good;
}

/// Cases of at most `longest` rows and keys.
bool run_checks(int longest) {
  int failed = run_selection_checks() ? 0 : 1;
  auto cases =
      cases_of({{64, 64}, {128, 128}, {128, 64}, {32, 32}, {32, 64}, {64, 128}, {96, 96}, {192, 192}, {256, 256}});
  add_filled_sizes(cases, {{16, 16},
                           {48, 48},
                           {80, 80},
                           {16, 64},
                           {112, 112},
                           {64, 96},
                           {128, 16},
                           {16, 128},
                           {160, 192},
                           {240, 208},
                           {16, 256}});
  std::erase_if(cases, [&](const Case& c) { return std::max(c.shape.Tq, c.shape.Tk) > longest; });
  std::size_t checked = cases.size();
  for (std::size_t i = 0; i < cases.size(); ++i) {
    Problem problem(cases[i]);
    if (i % 2 == 1) problem.params.tile_counter = problem.counter.get();
    if (!check_case(
            cases[i], problem, problem.params,
            [](const flash::ForwardParams& p) { flash::forward(p, flash::Product::dense, nullptr); },
            is_small(cases[i])))
      ++failed;
    if (!flash::forward_supported(cases[i].shape, flash::Product::sparse24)) continue;
    ++checked;
    Case sparse = cases[i];
    sparse.k = i % 3 == 0 ? sparse.shape.Dqk / 8 : i % 3 == 1 ? sparse.shape.Dqk / 2 : 1;
    sparse.name = "sparse24 k" + std::to_string(sparse.k) + " " + sparse.name;
    const Selected selected(problem, sparse.k);
    selected.compressed.poison();
    selected.run();
    problem.params = selected.on(problem.params);
    if (!check_case(sparse, problem, problem.params,
                    [](const flash::ForwardParams& p) { flash::forward(p, flash::Product::sparse24, nullptr); }))
      ++failed;
  }
  std::printf("%s: %zu cases, %d failed\n", failed == 0 ? "PASS" : "FAIL", checked, failed);
  return failed == 0;
}

/// Zeroes all but k features of each query row where it is, by the rule `topk_2of4` of select24.h and at any width, a
/// thread a row. `ties`: values are rounded to integers before, and every fifth row is zero.
__global__ void keep_2of4(flash::ForwardParams p, __nv_bfloat16* q, int k, bool ties) {
  const flash::Shape& s = p.shape;
  const long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
  if (i >= static_cast<long long>(s.B) * s.Tq * s.H) return;
  const int head = static_cast<int>(i % s.H), token = static_cast<int>(i / s.H % s.Tq);
  __nv_bfloat16* row = q + i / s.H / s.Tq * p.q_stride.batch + token * p.q_stride.token + head * p.q_stride.head;
  if (ties)
    for (int f = 0; f < s.Dqk; ++f) row[f] = __float2bfloat16(i % 5 == 0 ? 0.0f : rintf(__bfloat162float(row[f])));
  std::uint32_t kept[8] = {};
  for (int n = 0; n < k; ++n) {
    int best = -1;
    for (int f = 0; f < s.Dqk; ++f) {
      const std::uint32_t group = kept[f / 32] >> (f % 32 / 4 * 4) & 15u;
      if (__popc(group) == 2 || (group >> (f % 4) & 1u) != 0) continue;
      if (best < 0 || fabsf(__bfloat162float(row[f])) > fabsf(__bfloat162float(row[best]))) best = f;
    }
    kept[best / 32] |= 1u << (best % 32);
  }
  for (int f = 0; f < s.Dqk; ++f)
    if ((kept[f / 32] >> (f % 32) & 1u) == 0) row[f] = __float2bfloat16(0.0f);
}

void keep_2of4(const Problem& problem, int k, bool ties = false) {
  const flash::Shape& s = problem.params.shape;
  const long long rows = static_cast<long long>(s.B) * s.Tq * s.H;
  keep_2of4<<<static_cast<unsigned>((rows + 127) / 128), 128>>>(problem.params, problem.q.get(), k, ties);
  SFA_CHECK_CUDA(cudaGetLastError());
}

/// That the product of 2 of 4 is one: rows of which more is not zero lose something in it, so that it differs from the
/// dense product, and by more than rounding.
bool leaves_out_what_is_too_much(int d, int v) {
  Case c;
  c.shape = {1, 129, 129, 2, 1, d, v};
  const Problem problem(c);
  std::vector<float> lse[2];
  for (const auto product : {flash::Product::dense, flash::Product::sparse24}) {
    problem.lse.poison();
    flash::sm80_forward(problem.params, product, nullptr);
    SFA_CHECK_CUDA(cudaDeviceSynchronize());
    lse[product == flash::Product::sparse24] = problem.lse.download();
  }
  double difference = 0;
  for (std::size_t i = 0; i < lse[0].size(); ++i)
    difference += std::fabs(static_cast<double>(lse[0][i]) - lse[1][i]) / static_cast<double>(lse[0].size());
  const bool good = difference > 0.01 && difference < 10;
  std::printf("%-4s sm80 2of4 of full rows %dx%d: log-sum-exp differs by %.3f in the mean\n", good ? "ok" : "FAIL", d,
              v, difference);
  return good;
}

/// Every instance of the sm_80 kernels over all cases, and sizes that are filled up to one over a few; then the same on
/// queries selected 2 of 4.
bool run_sm80_checks(int longest) {
  auto cases = cases_of(kSm80Sizes);
  add_filled_sizes(cases, {{16, 16}, {48, 48}, {80, 80}, {16, 64}, {112, 112}, {64, 96}});
  add_filled_sizes(cases, {{160, 128}, {256, 16}, {16, 256}, {240, 208}});
  std::erase_if(cases, [&](const Case& c) { return std::max(c.shape.Tq, c.shape.Tk) > longest; });
  int failed = 0;
  const auto check = [&](const Case& c, const Problem& problem, flash::Product product, const std::string& kind) {
    Case named = c;
    named.name = kind + " " + c.name;
    const auto launch = [=](const flash::ForwardParams& p) { flash::sm80_forward(p, product, nullptr); };
    if (!check_case(named, problem, problem.params, launch, is_small(c))) ++failed;
  };
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const Case& c = cases[i];
    const Problem problem(c);
    check(c, problem, flash::Product::dense, "sm80");
    const int d = c.shape.Dqk, k = i % 4 == 0 ? d / 8 : i % 4 == 1 ? d / 2 : i % 4 == 2 ? 1 : d / 4 + 1;
    const bool ties = i % 3 == 2;
    keep_2of4(problem, k, ties);
    check(c, problem, flash::Product::sparse24, "sm80 2of4 k" + std::to_string(k) + (ties ? " ties" : ""));
  }
  for (const auto& [d, v] : kSm80Sizes)
    if (!leaves_out_what_is_too_much(d, v)) ++failed;
  std::printf("%s: sm80, %zu cases, dense and 2 of 4, %d failed\n", failed == 0 ? "PASS" : "FAIL", cases.size(),
              failed);
  return failed == 0;
}

double median_ms(const std::vector<float>& times) {
  auto sorted = times;
  std::sort(sorted.begin(), sorted.end());
  return sorted[sorted.size() / 2];
}

/// Median of 20 launches; every one reads far more than L2 holds, so that none finds its inputs there.
template <class Launch>
double time_launch(const Launch& launch) {
  cudaEvent_t begin, end;
  SFA_CHECK_CUDA(cudaEventCreate(&begin));
  SFA_CHECK_CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = -3; i < 20; ++i) {
    SFA_CHECK_CUDA(cudaEventRecord(begin));
    launch();
    SFA_CHECK_CUDA(cudaEventRecord(end));
    SFA_CHECK_CUDA(cudaEventSynchronize(end));
    float ms;
    SFA_CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 0) times.push_back(ms);
  }
  SFA_CHECK_CUDA(cudaEventDestroy(begin));
  SFA_CHECK_CUDA(cudaEventDestroy(end));
  return median_ms(times);
}

void report(const char* kind, const flash::Shape& s, double ms) {
  const double flops = 2.0 * s.B * s.H * static_cast<double>(s.Tq) * s.Tk * (s.Dqk + s.Dv) / 2;
  std::printf("%s %d %d %.1f TFLOP/s %.4f ms\n", kind, s.Dqk, s.Tq, flops / ms * 1e-9, ms);
  std::fflush(stdout);
}

void time_shape(int d, int heads, int n) {
  Case c;
  c.shape = {std::max(1, 32768 / n), n, n, heads, heads, d, d};
  Problem problem(c);
  problem.params.tile_counter = problem.counter.get();
  report("forward", c.shape, time_launch([&] { flash::forward(problem.params, flash::Product::dense, nullptr); }));
  const Selected selected(problem, d / 8);
  const flash::ForwardParams params = selected.on(problem.params);
  const std::size_t active = static_cast<std::size_t>(c.shape.B) * n * heads * (d / 8);
  const DeviceBuffer<__nv_bfloat16> values(active);
  const DeviceBuffer<std::uint8_t> indices(active);
  const auto select = [&] { selected.run_prefill(values.get(), indices.get()); };
  report("sparse24", c.shape, time_launch([&] {
           select();
           flash::forward(params, flash::Product::sparse24, nullptr);
         }));
  const double ms = time_launch(select);
  // q read and compressed (9/16), k read and zero-filled, values and indices of k
  const double rows = static_cast<double>(c.shape.B) * n * heads;
  const double bytes = rows * (2.0 * d * (1 + 9.0 / 16 + 2) + 3.0 * (d / 8));
  std::printf("selection %d %d %.0f GB/s %.4f ms\n", d, n, bytes / ms * 1e-6, ms);
  std::fflush(stdout);
}

void time_sizes(int d, int v, int n) {
  Case c;
  const int heads = 2048 / std::max(d, v);
  c.shape = {std::max(1, 32768 / n), n, n, heads, heads, d, v};
  Problem problem(c);
  problem.params.tile_counter = problem.counter.get();
  const double flops = 2.0 * c.shape.B * heads * static_cast<double>(n) * n * (d + v) / 2;
  const auto line = [&](const char* kind, double ms) {
    std::printf("%s %dx%d %d %.1f TFLOP/s %.4f ms\n", kind, d, v, n, flops / ms * 1e-9, ms);
    std::fflush(stdout);
  };
  if (flash::forward_supported(c.shape, flash::Product::dense))
    line("sm90", time_launch([&] { flash::forward(problem.params, flash::Product::dense, nullptr); }));
  line("sm80", time_launch([&] { flash::sm80_forward(problem.params, flash::Product::dense, nullptr); }));
}

void time_2of4(int d, int v, int n) {
  Case c;
  const int heads = 2048 / std::max(d, v);
  c.shape = {std::max(1, 32768 / n), n, n, heads, heads, d, v};
  const Problem problem(c);
  keep_2of4(problem, d / 8);
  const double flops = 2.0 * c.shape.B * heads * static_cast<double>(n) * n * (d + v) / 2;
  for (const auto& [kind, product] : {std::pair{"filled", flash::Product::dense}, {"2of4", flash::Product::sparse24}}) {
    const double ms = time_launch([&] { flash::sm80_forward(problem.params, product, nullptr); });
    std::printf("%s %dx%d %d %.1f TFLOP/s %.4f ms\n", kind, d, v, n, flops / ms * 1e-9, ms);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no GPU can be used\n");
    return 77;
  }
  cudaDeviceProp card{};
  const bool hopper = cudaGetDeviceProperties(&card, 0) == cudaSuccess && card.major == 9;
  if (argc > 1 && std::string(argv[1]) == "time") {
    for (const int n : {1024, 2048, 4096, 16384, 65536}) {
      time_shape(64, 12, n);
      time_shape(128, 16, n);
    }
    return 0;
  }
  const std::string mode = argc > 1 ? argv[1] : "check";
  if (mode == "time_sizes" || mode == "time_2of4") {
    for (const int n : {1024, 4096, 16384})
      for (const auto& [d, v] : kSm80Sizes) mode == "time_sizes" ? time_sizes(d, v, n) : time_2of4(d, v, n);
    return 0;
  }
  const int longest = argc > 2 ? std::atoi(argv[2]) : 1 << 30;
  bool good = !hopper || mode == "sm80" || run_checks(longest);
  good = run_sm80_checks(longest) && good;
  return good ? 0 : 1;
} catch (const std::exception& e) {
  std::printf("FAIL: %s\n", e.what());
  return 1;
}
