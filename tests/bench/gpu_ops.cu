// Times every op of a GPT-2 124M micro-step (B=64, T=1024, bf16) alone on one GPU: median of 20 launches behind 3 that
// warm up, by CUDA events. Bytes and operations are what the op's definition needs, each tensor read or written once.
// Usage: bench_gpu_ops [part of an op's name]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "core/rng.h"
#include "cuda/gemm.h"
#include "gpu_bench.cuh"
#include "ops/classifier/classifier.h"
#include "ops/embedding/embedding.h"
#include "ops/linear/linear.h"
#include "ops/residual_norm/residual_norm.h"
#include "ops/select/select.h"
#include "optim/guard.h"

namespace sfa {
namespace {

constexpr std::int64_t kB = 64, kT = 1024, kC = 768, kV = 50257, kVp = 50304, kN = kB * kT;

void bench_linear(Bench& b) {
  struct Shape {
    const char* name;
    std::int64_t I, O;
    bool gelu_out, gelu_in;
  };
  for (const auto& [name, I, O, gelu_out, gelu_in] :
       {Shape{"qkv", kC, 3 * kC, false, false}, Shape{"proj", kC, kC, false, false},
        Shape{"up", kC, 4 * kC, true, false}, Shape{"down", 4 * kC, kC, false, true}}) {
    const Tensor x = b.random(DType::bf16, {kN, I}), w = b.random(DType::bf16, {O, I}),
                 bias = b.random(DType::bf16, {O});
    const Tensor y = b.random(DType::bf16, {kN, O}), pre = gelu_out ? b.tensor(DType::bf16, {kN, O}) : Tensor{};
    const Tensor pre_in = gelu_in ? b.random(DType::bf16, {kN, I}) : Tensor{}, d_x = b.tensor(DType::bf16, {kN, I});
    const Tensor d_w = b.tensor(DType::f32, {O, I}), d_b = b.tensor(DType::f32, {O});
    const double product = 2.0 * kN * static_cast<double>(I * O), in = 2.0 * kN * static_cast<double>(I),
                 out = 2.0 * kN * static_cast<double>(O);
    b.time(std::string("linear forward ") + name, in + out * (gelu_out ? 2 : 1), product, [&](Context& ctx, Arena&) {
      linear_forward(ctx, {x, w, bias, y, pre});
    });
    b.time(std::string("linear backward ") + name, 2 * out + 2 * in, 2 * product, [&](Context& ctx, Arena& scratch) {
      linear_backward(ctx, {y, x, w, pre_in, d_x, d_w, d_b, scratch});
    });
    b.time(std::string("linear backward, no bias ") + name, 2 * out + 2 * in, 2 * product,
           [&](Context& ctx, Arena& scratch) {
             linear_backward(ctx, {y, x, w, pre_in, d_x, d_w, Tensor{}, scratch});
           });
    b.time(std::string("linear backward, weight only ") + name, out + in, product, [&](Context& ctx, Arena& scratch) {
      linear_backward(ctx, {y, x, w, Tensor{}, Tensor{}, d_w, Tensor{}, scratch});
    });
  }
}

void bench_norm(Bench& b) {
  const double row = 2.0 * kN * kC;
  const Tensor r = b.random(DType::bf16, {kN, kC}), x = b.random(DType::bf16, {kN, kC}),
               w = b.random(DType::bf16, {kC}), y = b.tensor(DType::bf16, {kN, kC}),
               sum = b.tensor(DType::bf16, {kN, kC}), mean = b.tensor(DType::f32, {kN}),
               rstd = b.tensor(DType::f32, {kN}), d_w = b.tensor(DType::f32, {kC}), d_b = b.tensor(DType::f32, {kC}),
               d_r = b.tensor(DType::bf16, {kN, kC});
  b.time("residual norm forward", 4 * row, 0, [&](Context& ctx, Arena&) {
    residual_norm_forward(ctx, {r, x, w, w, 1e-5f, sum, y, mean, rstd});
  });
  b.time("residual norm backward", 4 * row, 0, [&](Context& ctx, Arena& scratch) {
    residual_norm_backward(ctx, {x, r, sum, w, mean, rstd, d_r, d_w, d_b, scratch});
  });
}

// Tokens whose frequency falls like 1 / rank, as a text's do.
Tensor zipf_tokens(Bench& b) {
  std::vector<std::int32_t> ids(kN);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const float u = uniform_from_bits(philox(2, kPurposeTest, 0, static_cast<std::uint32_t>(i))[0]);
    ids[i] = static_cast<std::int32_t>(
        std::min<double>(static_cast<double>(kV - 1), std::pow(static_cast<double>(kV), static_cast<double>(u)) - 1));
  }
  const Tensor t = b.tensor(DType::i32, {kB, kT});
  b.ctx.copy(t.data, Device::cuda, ids.data(), Device::cpu, ids.size() * 4);
  b.ctx.synchronize();
  return t;
}

void bench_ends(Bench& b) {
  const double row = 2.0 * kN * kC, table = static_cast<double>(kVp * kC);
  const Tensor ids = zipf_tokens(b), wte = b.random(DType::bf16, {kVp, kC}), wpe = b.random(DType::bf16, {kT, kC}),
               x = b.random(DType::bf16, {kB, kT, kC});
  const Tensor d_wte = b.tensor(DType::f32, {kVp, kC}), d_wpe = b.tensor(DType::f32, {kT, kC});
  b.time("embedding forward", 2 * row, 0, [&](Context& ctx, Arena&) { embedding_forward(ctx, ids, wte, wpe, 0, x); });
  b.time("embedding backward", 2 * row, 0, [&](Context& ctx, Arena& scratch) {
    embedding_backward(ctx, {ids, x, d_wte, d_wpe, scratch});
  });
  const Tensor rows = x.view({kN, kC}), targets = ids.view({kN}), losses = b.tensor(DType::f32, {kN}),
               d_x = b.tensor(DType::bf16, {kN, kC});
  const double product = 2.0 * kN * table;
  b.time("classifier loss", row + 2 * table, product, [&](Context& ctx, Arena& scratch) {
    classifier_loss(ctx, {rows, wte, targets, kV, 1e-5f, losses, Tensor{}, Tensor{}, scratch});
  });
  b.time("classifier loss and gradients", 2 * row + 2 * table + 4 * table, 3 * product,
         [&](Context& ctx, Arena& scratch) {
           classifier_loss(ctx, {rows, wte, targets, kV, 1e-5f, losses, d_x, d_wte, scratch});
         });
}

void bench_select(Bench& b) {
  for (std::int64_t D : {64, 128}) {
    const Tensor qkv = b.random(DType::bf16, {kB, kT, 3 * kC}), q = qkv.slice(2, 0, kC).split_last(kC / D);
    for (std::int64_t k : {8, 16}) {
      const std::int64_t heads = kC / D;
      const Tensor values = b.tensor(DType::bf16, {kB, kT, heads, k}),
                   indices = b.tensor(DType::u8, {kB, kT, heads, k});
      const double row = 2.0 * kN * kC, sparse = 3.0 * kN * static_cast<double>(heads * k);
      const std::string suffix = " d=" + std::to_string(D) + " k=" + std::to_string(k);
      b.time("select" + suffix, 2 * row + sparse, 0, [&](Context& ctx, Arena&) {
        select_topk(ctx, {q, k, false, values, indices, q});
      });
      b.time("select 2:4" + suffix, 2 * row + sparse, 0, [&](Context& ctx, Arena&) {
        select_topk(ctx, {q, k, true, values, indices, q});
      });
      b.time("select, no dense" + suffix, row + sparse, 0, [&](Context& ctx, Arena&) {
        select_topk(ctx, {q, k, false, values, indices, Tensor{}});
      });
      b.time("mask gradient" + suffix, 2 * row + sparse / 3, 0,
             [&](Context& ctx, Arena&) { select_mask_gradient(ctx, q, indices); });
    }
  }
}

void bench_optimizer(Bench& b) {
  const std::int64_t n = 124475904;  // parameters of GPT-2 124M with a padded vocabulary
  const Tensor grad = b.random(DType::f32, {n}), master = b.random(DType::f32, {n}), m = b.tensor(DType::f32, {n}),
               v = b.tensor(DType::f32, {n});
  const Tensor param = b.tensor(DType::bf16, {n}), partials = b.tensor(DType::i64, {kNormPartials}),
               state = b.tensor(DType::u8, {sizeof(StepState)}), guard = b.tensor(DType::u8, {sizeof(GuardState)});
  b.time("gradient norm", 4.0 * static_cast<double>(n), 0, [&](Context& ctx, Arena&) {
    if (ctx.planning) return;
    gradient_norm_accumulate(ctx, grad, partials);
    decide_step(ctx, {.partials = partials, .state = state, .guard = guard});
  });
  // What the guard adds to a step without an event: a full window, and the search for a tensor that ends at once.
  const std::int64_t parameters = 148;
  const Tensor window = b.random(DType::f32, {2, 128}), spans = b.tensor(DType::i64, {parameters, 2}),
               sums = b.tensor(DType::i64, {parameters, kLocateParts});
  const GuardState full{.seen = 128, .events = {}};
  b.ctx.copy(guard.data, Device::cuda, &full, Device::cpu, sizeof full);
  b.time("guard", 0, 0, [&](Context& ctx, Arena&) {
    if (ctx.planning) return;
    decide_step(ctx, {.partials = partials,
                      .state = state,
                      .guard = guard,
                      .window = window,
                      .rule = {.guard = {.spike = GuardAction::skip, .loss_threshold = 0, .grad_norm_threshold = 0}}});
    locate_gradient(ctx, {grad, spans, sums, state, guard});
    note_gradients(ctx, {grad, spans, sums, state, guard});
  });
  const Tensor ema = b.random(DType::f32, {n});
  const auto adamw = [&](const char* name, double bytes, const Tensor& masters, const Tensor& average,
                         bool stochastic) {
    b.time(name, bytes * static_cast<double>(n), 0, [&](Context& ctx, Arena&) {
      if (ctx.planning) return;
      adamw_update(ctx, {.grad = grad,
                         .master = masters,
                         .m = m,
                         .v = v,
                         .param = param,
                         .state = state,
                         .ema = average,
                         .ema_decay = 0.999f,
                         .stochastic = stochastic});
    });
  };
  adamw("adamw", 30, master, {}, false);
  adamw("adamw, stochastic rounding", 30, master, {}, true);
  adamw("adamw, average of weights", 38, master, ema, false);
  adamw("adamw, no masters", 24, {}, {}, true);
}

}  // namespace
}  // namespace sfa

int main(int argc, char** argv) try {
  sfa::Bench bench(argc, argv);
  std::printf("%s, GPT-2 124M, B=64 T=1024, bf16\n", bench.ctx.device_name().c_str());
  sfa::bench_norm(bench);
  sfa::bench_linear(bench);
  sfa::bench_ends(bench);
  sfa::bench_select(bench);
  sfa::bench_optimizer(bench);
  for (const std::string& line : sfa::gemm_report(bench.ctx.cuda())) std::printf("%s\n", line.c_str());
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
