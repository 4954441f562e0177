// Times the ops that Qwen3 has beyond GPT-2 at the sizes of its models (32,768 tokens, bf16, gradients of weights in
// f32) on one GPU, against a copy of device memory. Bytes are what the op's definition needs, each tensor read or
// written once. Usage: bench_gpu_qwen3_ops [part of an op's name]
#include <cstdio>
#include <string>

#include "attention/attention.h"
#include "gpu_bench.cuh"
#include "ops/qk_norm_rope/qk_norm_rope.h"
#include "ops/residual_norm/residual_norm.h"
#include "ops/select/select.h"
#include "ops/swiglu/swiglu.h"

namespace sfa {
namespace {

constexpr std::int64_t kB = 8, kT = 4096, kN = kB * kT;

double bytes_of(std::int64_t elements) {
  return 2.0 * static_cast<double>(elements);
}

void bench_copy(Bench& b) {
  const Tensor from = b.random(DType::bf16, {kN, 8192}), to = b.tensor(DType::bf16, {kN, 8192});
  b.time("device copy", 2 * bytes_of(kN * 8192), 0, [&](Context& ctx, Arena&) {
    if (!ctx.planning) ctx.copy(to.data, Device::cuda, from.data, Device::cuda, static_cast<std::size_t>(from.bytes()));
  });
}

void bench_norm(Bench& b, std::int64_t C) {
  const double row = bytes_of(kN * C);
  const Tensor r = b.random(DType::bf16, {kN, C}), x = b.random(DType::bf16, {kN, C}), w = b.random(DType::bf16, {C}),
               y = b.tensor(DType::bf16, {kN, C}), sum = b.tensor(DType::bf16, {kN, C}),
               rstd = b.tensor(DType::f32, {kN}), d_w = b.tensor(DType::f32, {C}), d_r = b.tensor(DType::bf16, {kN, C});
  const std::string suffix = " C=" + std::to_string(C);
  b.time("rms norm forward" + suffix, 4 * row, 0, [&](Context& ctx, Arena&) {
    residual_norm_forward(ctx, {r, x, w, Tensor{}, 1e-6f, sum, y, Tensor{}, rstd});
  });
  b.time("rms norm backward" + suffix, 4 * row, 0, [&](Context& ctx, Arena& scratch) {
    residual_norm_backward(ctx, {x, r, sum, w, Tensor{}, rstd, d_r, d_w, Tensor{}, scratch});
  });
}

struct Heads {
  std::int64_t H, G, D;
};

void bench_rope(Bench& b, const Heads& s) {
  const std::int64_t qk = (s.H + s.G) * s.D, row = qk + s.G * s.D;
  const Tensor x = b.random(DType::bf16, {kB, kT, row}), y = b.random(DType::bf16, {kB, kT, row}),
               narrow = b.tensor(DType::bf16, {kB, kT, qk}), rstd = b.tensor(DType::f32, {kN, s.H + s.G}),
               w = b.random(DType::bf16, {s.D}), d_w = b.tensor(DType::f32, {s.D}), d_wk = b.tensor(DType::f32, {s.D});
  const std::string suffix = " H=" + std::to_string(s.H) + " G=" + std::to_string(s.G) + " D=" + std::to_string(s.D);
  QkNormRope f{
      .x = x, .H = s.H, .G = s.G, .D = s.D, .q_weight = w, .k_weight = w, .first_position = 0, .y = y, .rstd = rstd};
  b.time("qk norm rope forward" + suffix, 2 * bytes_of(kN * row), 0,
         [&](Context& ctx, Arena&) { qk_norm_rope_forward(ctx, f); });
  f.y = narrow;
  b.time("qk norm rope forward, no v" + suffix, 2 * bytes_of(kN * qk), 0,
         [&](Context& ctx, Arena&) { qk_norm_rope_forward(ctx, f); });
  b.time("qk norm rope backward in place" + suffix, 3 * bytes_of(kN * qk), 0, [&](Context& ctx, Arena& scratch) {
    qk_norm_rope_backward(ctx, {.d_y = y,
                                .x = x,
                                .H = s.H,
                                .G = s.G,
                                .D = s.D,
                                .q_weight = w,
                                .k_weight = w,
                                .rstd = rstd,
                                .d_x = y,
                                .d_q_weight = d_w,
                                .d_k_weight = d_wk,
                                .scratch = scratch});
  });
}

void bench_swiglu(Bench& b, std::int64_t F) {
  const double row = bytes_of(kN * F);
  const Tensor gate_up = b.random(DType::bf16, {kN, 2 * F}), y = b.tensor(DType::bf16, {kN, F}),
               d_y = b.random(DType::bf16, {kN, F}), d = b.tensor(DType::bf16, {kN, 2 * F});
  const std::string suffix = " F=" + std::to_string(F);
  b.time("swiglu forward" + suffix, 3 * row, 0, [&](Context& ctx, Arena&) { swiglu_forward(ctx, gate_up, y); });
  b.time("swiglu backward" + suffix, 5 * row, 0,
         [&](Context& ctx, Arena&) { swiglu_backward(ctx, {.gate_up = gate_up, .d_y = d_y, .d_gate_up = d}); });
  b.time("swiglu backward with y" + suffix, 6 * row, 0,
         [&](Context& ctx, Arena&) { swiglu_backward(ctx, {.gate_up = gate_up, .d_y = d_y, .d_gate_up = d, .y = y}); });
  b.time("swiglu backward in place with y" + suffix, 6 * row, 0, [&](Context& ctx, Arena&) {
    swiglu_backward(ctx, {.gate_up = gate_up, .d_y = d_y, .d_gate_up = gate_up, .y = y});
  });
}

void bench_select(Bench& b, std::int64_t heads, std::int64_t D, std::int64_t k) {
  const Tensor x = b.random(DType::bf16, {kB, kT, heads, D}), values = b.tensor(DType::bf16, {kB, kT, heads, k}),
               indices = b.tensor(DType::u8, {kB, kT, heads, k}), dense = b.tensor(DType::bf16, {kB, kT, heads, D});
  const double bytes = 2 * bytes_of(kN * heads * D) + 1.5 * bytes_of(kN * heads * k);
  for (const bool pairs : {false, true})
    b.time(std::string(pairs ? "select pairs" : "select") + " heads=" + std::to_string(heads) +
               " D=" + std::to_string(D) + " k=" + std::to_string(k),
           bytes, 0, [&](Context& ctx, Arena&) {
             select_topk(ctx, {x, k, false, values, indices, dense, pairs});
           });
}

// From projected rows to what sfa's core reads: QK-norm with RoPE and the selection as two passes, and as one.
void bench_prepare(Bench& b, const Heads& s, const char* selection, int k) {
  AttentionConfig config;
  config.type = "sfa";
  config.selection = selection;
  config.k_q = config.k_k = k;
  const AttentionDims dims{s.H, s.G, s.D, s.D};
  const auto attention = make_attention(config, dims, Device::cuda, DType::bf16);
  Arena saved("saved", Device::cuda), shared("shared", Device::cuda);
  attention->plan(saved, shared, kB, kT);
  saved.bind();
  shared.bind();
  AttentionState state = attention->plan(saved, shared, kB, kT);
  const Tensor x = b.random(DType::bf16, {kB, kT, dims.row()}), w = b.random(DType::bf16, {s.D}),
               rstd = b.tensor(DType::f32, {kN, s.H + s.G});
  const QkNormRope rotation{.x = x,
                            .H = s.H,
                            .G = s.G,
                            .D = s.D,
                            .q_weight = w,
                            .k_weight = w,
                            .first_position = 0,
                            .y = state.qkv,
                            .rstd = rstd};
  const double queries = state.q.compressed.empty() ? bytes_of(kN * s.H * s.D)
                                                    : static_cast<double>(state.q.compressed.bytes()),
               bytes = bytes_of(kN * dims.row()) + queries + 2 * bytes_of(kN * s.G * s.D) +
                       1.5 * bytes_of(kN * (s.H + s.G) * k) + 2 * bytes_of(kN * (s.H + s.G));
  const std::string suffix = std::string(" ") + selection + " " + std::to_string(s.H) + "/" + std::to_string(s.G) +
                             " d" + std::to_string(s.D) + " k" + std::to_string(k);
  b.time("rope, then" + suffix, bytes, 0, [&](Context& ctx, Arena&) {
    qk_norm_rope_forward(ctx, rotation);
    attention->prepare(ctx, state);
  });
  b.time("rope with" + suffix, bytes, 0, [&](Context& ctx, Arena&) {
    require(attention->prepare_rotated(ctx, rotation, state), "there is no such pass");
  });
}

}  // namespace
}  // namespace sfa

int main(int argc, char** argv) try {
  sfa::Bench bench(argc, argv);
  std::printf("%s, Qwen3, %d tokens, bf16\n", bench.ctx.device_name().c_str(), static_cast<int>(sfa::kN));
  sfa::bench_copy(bench);
  for (const std::int64_t C : {1024, 2048, 2560, 4096}) sfa::bench_norm(bench, C);
  for (const sfa::Heads& s : {sfa::Heads{16, 8, 128}, sfa::Heads{32, 8, 128}, sfa::Heads{12, 12, 64}})
    sfa::bench_rope(bench, s);
  for (const std::int64_t F : {3072, 6144}) sfa::bench_swiglu(bench, F);
  for (const std::int64_t heads : {8, 16}) sfa::bench_select(bench, heads, 128, 16);
  for (const char* selection : {"topk", "topk_2of4", "topk_pairs"}) {
    sfa::bench_prepare(bench, {16, 8, 128}, selection, 16);
    sfa::bench_prepare(bench, {16, 8, 128}, selection, 8);
    sfa::bench_prepare(bench, {32, 8, 128}, selection, 16);
    sfa::bench_prepare(bench, {12, 12, 64}, selection, 8);
  }
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
