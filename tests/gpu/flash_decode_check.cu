// Checks and times decoding over a KV cache on the device, dense and sparse keys.
//   flash_decode_check [check]    all checks
//   flash_decode_check small      those of at most 130 keys, for compute-sanitizer
//   flash_decode_check time       "decode TYPE H G D k B N MS GB/s BYTES" a line, for scripts/bench/decode_vs_cudnn.py
#include <algorithm>
#include <cstring>

#include "gpu/flash_decode_cases.cuh"

using namespace sfa;
using namespace sfa::test;

namespace {

std::vector<Case> cases() {
  std::vector<Case> list;
  const auto add = [&](const char* name, flash::Shape s, auto&&... set) {
    Case c;
    c.shape = s;
    c.query_offset = s.Tk - s.Tq;
    (set(c), ...);
    c.name = std::string(name) + " B" + std::to_string(s.B) + " Tq" + std::to_string(s.Tq) + " Tk" +
             std::to_string(s.Tk) + " H" + std::to_string(s.H) + "/" + std::to_string(s.G) + " D" +
             std::to_string(s.Dqk) + (s.Dv == s.Dqk ? "" : "v" + std::to_string(s.Dv));
    list.push_back(c);
  };
  const auto full = [](Case& c) { c.causal = false; };
  const auto window = [](int w) { return [w](Case& c) { c.window = w; }; };
  const auto offset = [](int o) { return [o](Case& c) { c.query_offset = o; }; };
  const auto document = [](int d) { return [d](Case& c) { c.document = d; }; };
  const auto amplitude = [](float a) { return [a](Case& c) { c.amplitude = a; }; };
  for (const auto& [d, v] : {std::pair{64, 64}, std::pair{128, 128}}) {
    for (const int t : {1, 17, 31, 32, 33, 127, 128, 129, 1000, 4097}) add("one", {2, 1, t, 4, t % 2 ? 2 : 4, d, v});
    for (const int group : {1, 2, 3, 4, 5, 8, 12, 16}) add("group", {2, 1, 257, group * 2, 2, d, v});
    for (const int n : {2, 3, 7, 16}) add("rows", {2, n, 300, 4, 2, d, v});
    add("rows in blocks", {1, 16, 290, 12, 2, d, v});
    add("batch", {70, 1, 200, 4, 2, d, v});
    add("long", {1, 1, 20000, 2, 1, d, v});
    add("full", {2, 5, 200, 4, 2, d, v}, full, offset(0));
    for (const int w : {1, 30, 100}) add("window", {2, 3, 280, 4, 2, d, v}, window(w));
    add("window", {1, 2, 9000, 4, 2, d, v}, window(1000));
    add("documents", {3, 9, 290, 4, 2, d, v}, document(3));
    add("offset -5", {2, 9, 50, 2, 2, d, v}, offset(-5));
    add("offset -50 (all empty)", {1, 3, 50, 2, 2, d, v}, offset(-50));
    add("offset beyond", {1, 3, 100, 2, 1, d, v}, offset(3000));
    add("offset beyond window", {1, 3, 100, 2, 1, d, v}, offset(120), window(40));
    add("amplitude 3", {2, 1, 280, 4, 2, d, v}, amplitude(3.0f));
  }
  for (const auto& [d, v] :
       {std::pair{16, 16}, std::pair{32, 64}, std::pair{96, 96}, std::pair{128, 64}, std::pair{64, 128},
        std::pair{256, 256}, std::pair{40, 24}, std::pair{192, 128}, std::pair{64, 256}}) {
    add("size", {2, 1, 270, 4, 2, d, v});
    add("size", {1, 5, 3000, 6, 2, d, v});
  }
  return list;
}

/// Keys and values in 8 bits.
bool check_int8(const Case& c, const Problem& problem, const Int8Cache& v, void* workspace) {
  Case named = c;
  named.name = "int8 dense " + c.name;
  const Int8Cache k(c.shape, problem.params.k, problem.params.k_stride, c.shape.Dqk);
  flash::ForwardParams oracle = problem.params;
  oracle_keys(k, oracle);
  oracle_values(v, oracle);
  return check_case(named, problem, oracle, [&](const flash::ForwardParams& p) {
    flash::DecodeParams d = decode_params(p, workspace);
    fill_keys(k, d);
    fill_values(v, d);
    flash::decode(d, nullptr);
  });
}

/// Sparse keys, values in bf16 and in 8 bits.
bool check_sparse(const Case& c, const Problem& problem, const Int8Cache& v8, void* workspace,
                  const SparseProblem& sparse, bool masks) {
  const auto check = [&](const std::string& name, const Int8Cache* v) {
    Case named = c;
    named.name = name + " k" + std::to_string(sparse.k) + " " + c.name;
    flash::ForwardParams oracle = sparse.oracle(problem.params);
    if (v != nullptr) oracle_values(*v, oracle);
    return check_case(named, problem, oracle, [&](const flash::ForwardParams& p) {
      flash::DecodeParams d = decode_params(p, workspace);
      sparse.fill(d, masks);
      if (v != nullptr) fill_values(*v, d);
      flash::decode(d, nullptr);
    });
  };
  const std::string name = masks ? "masks" : "sparse";
  return check(name, nullptr) & check("int8 " + name, &v8);
}

/// How many features a key keeps in the checks of a case.
std::vector<int> widths_of(const Case& c, bool small) {
  const int D = c.shape.Dqk;
  if (small || c.shape.Tk > 300 || !c.name.starts_with("one")) return {D / 8, D * 7 / 16};
  return {1, 3, 4, 8, 12, 16, 19, 28, 32, 38, 40, 64};
}

bool check_all(bool small) {
  bool good = true;
  for (const Case& c : cases()) {
    if (small && c.shape.Tk > 130) continue;
    const Problem problem(c);
    const DeviceBuffer<char> workspace(flash::decode_workspace_bytes(c.shape));
    workspace.poison();
    good &= check_case(c, problem, problem.params, [&](const flash::ForwardParams& p) {
      flash::decode(decode_params(p, workspace.get()), nullptr);
    });
    const Int8Cache v8(c.shape, problem.params.v, problem.params.v_stride, c.shape.Dv);
    good &= check_int8(c, problem, v8, workspace.get());
    for (const int k : widths_of(c, small)) {
      const SparseProblem sparse(problem.params, k);
      for (const bool masks : {false, true})
        if (sparse.fits(c.shape, masks)) good &= check_sparse(c, problem, v8, workspace.get(), sparse, masks);
    }
    const SparseProblem crowded(problem.params, std::min(20, c.shape.Dqk / 2), true);
    Case named = c;
    named.name = "crowded " + c.name;
    good &= check_sparse(named, problem, v8, workspace.get(), crowded, true);
  }
  return good;
}

float median_ms(const auto& run, int reps) {
  cudaEvent_t begin, end;
  SFA_CHECK_CUDA(cudaEventCreate(&begin));
  SFA_CHECK_CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < reps + 3; ++i) {
    SFA_CHECK_CUDA(cudaEventRecord(begin));
    run();
    SFA_CHECK_CUDA(cudaEventRecord(end));
    SFA_CHECK_CUDA(cudaEventSynchronize(end));
    float ms = 0;
    SFA_CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) times.push_back(ms);
  }
  std::nth_element(times.begin(), times.begin() + reps / 2, times.end());
  return times[static_cast<std::size_t>(reps / 2)];
}

static __global__ void fill_supports(std::uint8_t* indices, std::size_t rows, int k, int D) {
  for (std::size_t n = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; n < rows;
       n += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    // Ascending, one out of every D / k features or so.
    std::uint32_t state = static_cast<std::uint32_t>(n) * 2654435761u + 12345u;
    for (int i = 0; i < k; ++i) {
      state = state * 1664525u + 1013904223u;
      const int first = i * D / k, last = (i + 1) * D / k;
      indices[n * k + i] = static_cast<std::uint8_t>(first + (state >> 16) % static_cast<unsigned>(last - first));
    }
  }
}

/// Caches head by head, as the variants keep them; k = 0: dense. In 8 bits the values, or dense keys and values: any
/// bytes will do, those of the bf16 rows, with small scales. Where keys have masks, queries keep every feature, and
/// `numbers` says how long it would take without.
void time_shape(int H, int G, int D, int k, int B, int n, bool int8, bool numbers = false) {
  flash::DecodeParams d;
  d.shape = {B, 1, n, H, G, D, D};
  d.ranges.query_offset = n - 1;
  d.scale = 1.0f / std::sqrt(static_cast<float>(D));
  const std::size_t keys = static_cast<std::size_t>(B) * G * n;
  const DeviceBuffer<__nv_bfloat16> q(static_cast<std::size_t>(B) * H * D), out(q.count()), v(keys * D),
      rows(keys * (k > 0 ? k : D));
  const bool masks = k > 0 && support_format(D, k).mask && !numbers;
  const int k_q = support_format(D, k).mask ? D : k, row_mask = masks ? static_cast<int>(mask_bytes(D)) : 0;
  const DeviceBuffer<std::uint8_t> indices(keys * k + 16), k_masks(keys * row_mask + 16),
      q_indices(static_cast<std::size_t>(B) * H * k_q + 16);
  const DeviceBuffer<float> lse(static_cast<std::size_t>(B) * H);
  const DeviceBuffer<char> workspace(flash::decode_workspace_bytes(d.shape));
  fill_normal<<<1024, 256>>>(q.get(), q.count(), 1u, 1.0f);
  fill_normal<<<1024, 256>>>(v.get(), v.count(), 2u, 1.0f);
  fill_normal<<<1024, 256>>>(rows.get(), rows.count(), 3u, 1.0f);
  const auto head_major = [&](std::int64_t width) {
    return flash::Strides{G * std::int64_t{n} * width, width, n * width};
  };
  d.v = v.get();
  d.v_stride = head_major(D);
  d.out = out.get();
  d.out_stride = {std::int64_t{H} * D, std::int64_t{H} * D, D};
  d.lse = lse.get();
  d.workspace = workspace.get();
  if (k > 0) {
    fill_supports<<<1024, 256>>>(indices.get(), keys, k, D);
    fill_supports<<<1024, 256>>>(q_indices.get(), static_cast<std::size_t>(B) * H, k_q, D);
    const flash::Strides at{std::int64_t{H} * k_q, std::int64_t{H} * k_q, k_q};
    d.q_sparse = {q.get(), q_indices.get(), k_q, at, at};
    d.k_sparse = {rows.get(), indices.get(), k, head_major(k), head_major(k)};
    if (masks) {
      pack_masks<<<1024, 256>>>(indices.get(), keys, k, k_masks.get(), row_mask);
      d.k_sparse = {rows.get(), k_masks.get(), k, head_major(k), head_major(row_mask), row_mask};
    }
  } else {
    d.q = q.get();
    d.q_stride = d.out_stride;
    d.k = rows.get();
    d.k_stride = d.v_stride;
  }
  const std::int64_t capacity = (n + 15) / 16 * 16;
  const DeviceBuffer<__nv_bfloat16> scales(int8 ? static_cast<std::size_t>(B) * G * capacity : 1);
  if (int8) {
    fill_normal<<<1024, 256>>>(scales.get(), scales.count(), 4u, 0.01f);
    d.v_scale = scales.get();
    d.v_scale_stride = {G * capacity, 1, capacity};
    if (k == 0) {
      d.k_scale = d.v_scale;
      d.k_scale_stride = d.v_scale_stride;
    }
  }
  const float ms = median_ms([&] { flash::decode(d, nullptr); }, 20);
  const int value = int8 ? D + 2 : 2 * D;
  const double bytes = static_cast<double>(keys) * (value + (k > 0 ? d.k_sparse.row_bytes() : value));
  std::printf("decode %s%s%s %d %d %d %d %d %d %.4f %.0f %.0f\n", k > 0 ? "sfa" : "dense", numbers ? "_numbers" : "",
              int8 ? "_int8" : "", H, G, D, k, B, n, ms, bytes / ms * 1e-6, bytes);
  std::fflush(stdout);
}

void time_all() {
  struct Heads {
    int H, G, D, B, n;
    std::vector<int> k;
  };
  for (const Heads& s : {Heads{12, 12, 64, 32, 32768, {0, 8, 28, 38}}, Heads{16, 8, 128, 32, 32768, {0, 16, 8}},
                         Heads{16, 8, 128, 4, 131072, {0, 16, 8}}, Heads{12, 12, 64, 4, 131072, {0, 8}},
                         Heads{32, 8, 128, 16, 32768, {0, 16}}, Heads{12, 12, 64, 1, 131072, {0, 8}},
                         Heads{12, 12, 64, 1, 1024, {0, 8}}, Heads{16, 8, 128, 256, 2048, {0, 16}}})
    for (const int k : s.k)
      for (const bool int8 : {false, true}) time_shape(s.H, s.G, s.D, k, s.B, s.n, int8);
  for (const bool int8 : {false, true}) time_shape(12, 12, 64, 28, 32, 32768, int8, true);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "check";
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU\n");
    return 77;
  }
  if (mode == "time") {
    time_all();
    return 0;
  }
  const bool good = check_all(mode == "small");
  std::printf("%s\n", good ? "all checks passed" : "SOME CHECKS FAILED");
  return good ? 0 : 1;
}
