// CPU attention, impl flash, of the variants side by side: forward and backward of one call, without selection.
// scripts/bench/attention_cpu.sh runs it beside PyTorch's scaled_dot_product_attention and prints the ratios.
//   name: PASS/TYPE/SUPPORTS/B/H/D/T/k, PASS forward | backward | decode (one query over T keys).
// Random supports are uniform. Aligned ones imitate a trained model, where some features of a head are large in queries
// and keys alike (overlap about three times the uniform k^2/d): feature f is drawn with standard deviation proportional
// to e^(0.6 z_f).
#include <benchmark/benchmark.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "core/rng.h"
#include "ops/select/select.h"

namespace {

using namespace sfa;

struct Shape {
  std::int64_t B, H, D, T;
  int k;  // 0 = dense
  bool aligned, decode;
};

struct Layer {
  Context ctx{Device::cpu};
  Arena memory{"tensors", Device::cpu}, scratch{"scratch", Device::cpu};
  std::unique_ptr<Attention> attention;
  Queries q;
  Keys k;
  Ranges ranges;
  Tensor out, lse, d_out, d_q, d_k, d_v;

  explicit Layer(const Shape& s) {
    AttentionConfig config;
    config.type = s.k > 0 ? "sfa" : "dense";
    config.impl = "flash";
    config.k_q = config.k_k = s.k;
    attention = make_attention(config, {s.H, s.H, s.D, s.D}, Device::cpu, DType::f32);
    const std::int64_t Tq = s.decode ? 1 : s.T;
    ranges.query_offset = s.T - Tq;
    take(s, Tq);
    memory.bind();
    take(s, Tq);
    fill(q.dense, 1, s.aligned);
    fill(k.dense, 2, s.aligned);
    fill(k.v, 3, false);
    fill(d_out, 4, false);
    if (s.k > 0) {
      select_topk(ctx, {q.dense, s.k, false, q.values, q.indices, q.dense});
      select_topk(ctx, {k.dense, s.k, false, k.values, k.indices, k.dense});
    }
    ctx.planning = true;
    forward();
    if (!s.decode) backward();
    ctx.planning = false;
    scratch.bind();
    forward();
  }

  void take(const Shape& s, std::int64_t Tq) {
    const auto rows = [&](std::int64_t T) { return memory.take(DType::f32, {s.B, T, s.H, s.D}); };
    q.dense = rows(Tq), k.dense = rows(s.T), k.v = rows(s.T);
    out = rows(Tq), d_out = rows(Tq), d_q = rows(Tq), d_k = rows(s.T), d_v = rows(s.T);
    lse = memory.take(DType::f32, {s.B, s.H, Tq});
    if (s.k == 0) return;
    q.values = memory.take(DType::f32, {s.B, Tq, s.H, s.k}), q.indices = memory.take(DType::u8, {s.B, Tq, s.H, s.k});
    k.values = memory.take(DType::f32, {s.B, s.T, s.H, s.k}), k.indices = memory.take(DType::u8, {s.B, s.T, s.H, s.k});
  }

  static void fill(const Tensor& t, std::uint64_t stream, bool aligned) {
    const std::int64_t D = t.dim(3);
    std::vector<float> spread(static_cast<std::size_t>(D), 1.0f);
    float square = 0;
    for (std::size_t f = 0; aligned && f < spread.size(); ++f) {
      spread[f] = std::exp(0.6f * normal_at(1, kPurposeTest, 9, f));
      square += spread[f] * spread[f] / static_cast<float>(D);
    }
    for (float& x : spread) x /= aligned ? std::sqrt(square) : 1.0f;
    for (std::int64_t i = 0; i < t.numel(); ++i)
      t.as<float>()[i] =
          spread[static_cast<std::size_t>(i % D)] * normal_at(1, kPurposeTest, stream, static_cast<std::uint64_t>(i));
  }

  void forward() { attention->core(ctx, {q, k, ranges, out, lse, scratch}); }
  void backward() { attention->core_backward(ctx, {q, k, ranges, out, lse, d_out, d_q, d_k, d_v, scratch}); }

  // Share of pairs with a common feature, and features in common a pair, over a sample.
  [[nodiscard]] std::pair<double, double> overlap() const {
    double pairs = 0, any = 0, common = 0;
    const std::int64_t K = q.indices.dim(3), step = std::max<std::int64_t>(1, q.indices.dim(1) / 64);
    for (std::int64_t i = 0; i < q.indices.dim(1); i += step)
      for (std::int64_t j = 0; j <= i + ranges.query_offset; j += 7) {
        const std::uint8_t *a = q.indices.as<std::uint8_t>() + i * q.indices.stride[1],
                           *b = k.indices.as<std::uint8_t>() + j * k.indices.stride[1];
        int n = 0;
        for (std::int64_t x = 0, y = 0; x < K && y < K; a[x] < b[y] ? ++x : (a[x] > b[y] ? ++y : (++n, ++x, ++y))) {
        }
        pairs += 1, any += n > 0, common += n;
      }
    return {any / pairs, common / pairs};
  }
};

void run(benchmark::State& state, const Shape& s, bool backward) {
  Layer layer(s);
  for (auto _ : state) backward ? layer.backward() : layer.forward();
  if (s.k == 0) return;
  const auto [share, common] = layer.overlap();
  state.counters["overlapping"] = share;
  state.counters["common"] = common;
}

void add(const Shape& s, const std::string& pass) {
  const std::string type = s.k > 0 ? (s.aligned ? "sfa/aligned" : "sfa/random") : "dense/all";
  const std::string name = pass + "/" + type + "/" + std::to_string(s.B) + "/" + std::to_string(s.H) + "/" +
                           std::to_string(s.D) + "/" + std::to_string(s.T) + "/" + std::to_string(s.k);
  benchmark::RegisterBenchmark(name.c_str(), run, s, pass == "backward")
      ->UseRealTime()
      ->MeasureProcessCPUTime()
      ->Unit(benchmark::kMillisecond);
}

}  // namespace

int main(int argc, char** argv) {
  struct Sizes {
    std::int64_t B, H, D, T;
    std::vector<int> ks;
  };
  const std::vector<Sizes> sizes = {{1, 1, 128, 4096, {8, 16}},
                                    {1, 1, 64, 4096, {8, 16}},
                                    {12, 4, 32, 64, {8}},
                                    {12, 4, 32, 256, {8}},
                                    {1, 12, 64, 1024, {8}}};
  for (const Sizes& z : sizes)
    for (const std::string pass : {"forward", "backward", "decode"}) {
      const bool decode = pass == "decode";
      if (decode && z.T < 1024) continue;
      add({z.B, z.H, z.D, z.T, 0, false, decode}, pass);
      for (const int k : z.ks)
        for (const bool aligned : {false, true}) add({z.B, z.H, z.D, z.T, k, aligned, decode}, pass);
    }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
