// Checks and times the projection with selection (project_select.h) on the device.
//   project_select_check [check]     all checks
//   project_select_check check N     those of at most N tokens, for compute-sanitizer
//   project_select_check time        ms of the product alone, the product and select_features, and both in one kernel
#include <algorithm>

#include "attention/flash/flash_forward.h"
#include "core/context.h"
#include "core/device_cuda.h"
#include "gpu/project_select_cases.cuh"
#include "ops/linear/linear.h"

using namespace sfa;
using namespace sfa::test;

namespace {

constexpr auto kTopk = flash::Selection::topk, kTwoOfFour = flash::Selection::topk_2of4;

std::vector<ProjectCase> cases() {
  std::vector<ProjectCase> list;
  const auto add = [&](ProjectCase c) {
    for (const bool exact : {true, false}) {
      c.exact = exact;
      c.rule = kTopk, c.compressed = false;
      list.push_back(c);
      c.rule = kTwoOfFour, c.compressed = true;
      list.push_back(c);
    }
  };
  for (const int T : {1, 17, 64, 127, 128, 129, 192, 1000})
    for (const int B : {1, 3}) {
      add({B, T, 256, 4, 2, 64, 64, 8, 8, kTopk, false, true});
      add({B, T, 264, 2, 1, 128, 128, 16, 16, kTopk, false, true});
    }
  for (const int k : {1, 2, 3, 7, 12, 16}) {
    add({2, 130, 256, 6, 3, 64, 64, k, 17 - k, kTopk, false, true});
    add({2, 192, 256, 3, 3, 128, 64, 17 - k, k, kTopk, false, true});
  }
  add({5, 256, 768, 12, 12, 64, 64, 8, 8, kTopk, false, true});
  add({2, 320, 1024, 16, 8, 128, 128, 16, 16, kTopk, false, true});
  add({2, 300, 264, 5, 5, 64, 128, 8, 4, kTopk, false, true, false});
  list.push_back({2, 300, 264, 5, 1, 64, 128, 8, 4, kTwoOfFour, false, true});  // 2 of 4, but as rows
  list.push_back({37, 448, 256, 12, 4, 64, 64, 8, 8, kTwoOfFour, true, true});  // many tiles a block
  list.push_back({1, 16500, 256, 4, 4, 64, 64, 8, 8, kTopk, false, false});
  return list;
}

bool run_checks(long long longest) {
  int failed = 0, checked = 0;
  for (const ProjectCase& c : cases()) {
    if (static_cast<long long>(c.tokens()) > longest) continue;
    ++checked;
    failed += !check_projection(c);
  }
  std::printf("%s: projection with selection, %d cases, %d failed\n", failed == 0 ? "PASS" : "FAIL", checked, failed);
  return failed == 0;
}

/// Median of 30 launches on the context's stream in ms.
template <class Launch>
double time_launch(Context& ctx, const Launch& launch) {
  auto* stream = static_cast<cudaStream_t>(cuda_ops::stream(ctx));
  cudaEvent_t begin, end;
  SFA_CHECK_CUDA(cudaEventCreate(&begin));
  SFA_CHECK_CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = -5; i < 30; ++i) {
    SFA_CHECK_CUDA(cudaEventRecord(begin, stream));
    launch();
    SFA_CHECK_CUDA(cudaEventRecord(end, stream));
    SFA_CHECK_CUDA(cudaEventSynchronize(end));
    float ms;
    SFA_CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 0) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

struct Timed {
  double linear, apart, fused;
};

/// One shape under one rule; everything reads and writes far more than L2 holds.
Timed time_case(Context& ctx, const ProjectCase& c) {
  const auto N = static_cast<std::int64_t>(c.tokens());
  const std::int64_t row = c.row();
  const auto elements = [&](std::int64_t n) { return static_cast<std::size_t>(n); };
  const DeviceBuffer<__nv_bfloat16> x(elements(N * c.I)), w(elements(row * c.I)), bias(elements(row)),
      y(elements(N * row)), v(elements(N * c.G * c.Dv)), values(elements(N * c.H * c.k_q)),
      k_values(elements(N * c.G * c.k_k));
  const DeviceBuffer<std::uint8_t> indices(elements(N * c.H * c.k_q)), k_indices(elements(N * c.G * c.k_k)),
      compressed(elements(std::int64_t{c.B} * c.H * c.blocks()) * flash::compressed_block_bytes(c.D));
  fill_normal<<<1024, 256>>>(x.get(), x.count(), 1u, 1.0f);
  fill_normal<<<1024, 256>>>(w.get(), w.count(), 2u, 1.0f / std::sqrt(static_cast<float>(c.I)));
  fill_normal<<<1024, 256>>>(bias.get(), bias.count(), 3u, 0.5f);
  const auto tensor = [](const DeviceBuffer<__nv_bfloat16>& b, std::initializer_list<std::int64_t> dims) {
    return Tensor(b.get(), DType::bf16, Device::cuda, dims);
  };
  const LinearForward linear{tensor(x, {N, c.I}), tensor(w, {row, c.I}), tensor(bias, {row}), tensor(y, {N, row}), {}};
  flash::SelectParams q, k;
  q.B = k.B = c.B, q.T = k.T = c.T, q.D = k.D = c.D;
  q.heads = c.H, k.heads = c.G, q.k = c.k_q, k.k = c.k_k, q.rule = c.rule;
  q.x = y.get(), k.x = y.get() + c.H * c.D;
  q.x_stride = k.x_stride = q.dense_stride = k.dense_stride = {c.T * row, row, c.D};
  q.values = values.get(), q.indices = indices.get(), k.values = k_values.get(), k.indices = k_indices.get();
  k.dense = y.get() + c.H * c.D;
  if (c.compressed)
    q.compressed = compressed.get();
  else
    q.dense = y.get();
  flash::RowCopy copy;
  copy.from = y.get() + (c.H + c.G) * c.D, copy.to = v.get(), copy.width = c.G * c.Dv;
  copy.from_stride = {c.T * row, row, c.Dv};
  copy.to_stride = {std::int64_t{c.T} * c.G * c.Dv, std::int64_t{c.G} * c.Dv, c.Dv};
  flash::ProjectSelectParams p;
  p.B = c.B, p.T = c.T, p.I = c.I, p.H = c.H, p.G = c.G, p.D = c.D, p.Dv = c.Dv;
  p.x = x.get(), p.weight = w.get(), p.bias = bias.get(), p.k_q = c.k_q, p.k_k = c.k_k, p.rule = c.rule;
  p.q_values = q.values, p.q_indices = q.indices, p.k_values = k.values, p.k_indices = k.indices;
  p.q_dense = q.dense, p.q_compressed = q.compressed, p.k_dense = k.dense, p.v = v.get();
  p.q_stride = p.k_stride = q.x_stride, p.v_stride = copy.to_stride;
  void* stream = cuda_ops::stream(ctx);
  SFA_CHECK_CUDA(cudaDeviceSynchronize());  // what fills the inputs runs on another stream
  const auto apart = [&] {
    linear_forward(ctx, linear);
    flash::select_features(q, k, copy, stream);
  };
  return {time_launch(ctx, [&] { linear_forward(ctx, linear); }), time_launch(ctx, apart),
          time_launch(ctx, [&] { flash::project_select(p, stream); })};
}

void time_shapes() {
  Context ctx(Device::cuda);
  const auto line = [&](const char* name, const ProjectCase& c) {
    const Timed t = time_case(ctx, c);
    const double flops = 2.0 * static_cast<double>(c.tokens()) * c.row() * c.I;
    std::printf(
        "projection %-16s N%zu I%d d%d k%d: linear %.4f ms (%.0f TFLOP/s), and selection %.4f, fused %.4f (%.0f "
        "TFLOP/s); selection costs %.4f apart, %.4f fused\n",
        name, c.tokens(), c.I, c.D, c.k_q, t.linear, flops / t.linear * 1e-9, t.apart, t.fused, flops / t.fused * 1e-9,
        t.apart - t.linear, t.fused - t.linear);
    std::fflush(stdout);
  };
  for (const int T : {1024, 2048}) {  // 32768 and 65536 tokens
    line("topk", {32, T, 768, 12, 12, 64, 64, 8, 8, kTopk, false, false});
    line("topk_2of4", {32, T, 768, 12, 12, 64, 64, 8, 8, kTwoOfFour, true, false});
  }
  line("values alone", {32, 2048, 768, 4, 4, 64, 448, 8, 8, kTopk, false, false});
  line("topk_2of4", {32, 1024, 768, 12, 12, 64, 64, 16, 16, kTwoOfFour, true, false});
  line("topk", {32, 1024, 2048, 16, 16, 128, 128, 16, 16, kTopk, false, false});
  line("topk_2of4", {32, 1024, 2048, 16, 16, 128, 128, 16, 16, kTwoOfFour, true, false});
  line("topk_2of4", {32, 1024, 2048, 16, 8, 128, 128, 16, 16, kTwoOfFour, true, false});
  for (const int N : {1024, 2048, 4096, 8192, 16384}) {
    line("topk", {1, N, 768, 12, 12, 64, 64, 8, 8, kTopk, false, false});
    line("topk_2of4", {1, N, 768, 12, 12, 64, 64, 8, 8, kTwoOfFour, true, false});
  }
}

}  // namespace

int main(int argc, char** argv) try {
  int devices = 0;
  cudaDeviceProp card{};
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0 || cudaGetDeviceProperties(&card, 0) != cudaSuccess ||
      card.major != 9) {
    std::printf("skipped: it takes a GPU of compute capability 9.0\n");
    return 77;
  }
  const std::string mode = argc > 1 ? argv[1] : "check";
  if (mode == "time") {
    time_shapes();
    return 0;
  }
  return run_checks(argc > 2 ? std::atoll(argv[2]) : 1ll << 40) ? 0 : 1;
} catch (const std::exception& e) {
  std::printf("FAIL: %s\n", e.what());
  return 1;
}
