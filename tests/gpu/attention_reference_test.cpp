#include "attention/reference.h"
#include "gpu/twins.h"
#include "ops/select/select.h"

namespace sfa::test {
namespace {

struct Case {
  std::int64_t B, Tq, Tk, H, G, Dqk, Dv;
  bool causal = true;
  std::int64_t query_offset = 0, window = 0;
  bool documents = false;
  std::int64_t k = 0;  // > 0: rows reduced to their k largest features, pairs without a common feature masked out
};
constexpr Case kCases[] = {
    {1, 1, 1, 1, 1, 8, 8},
    {2, 17, 17, 2, 2, 16, 16},
    {1, 127, 127, 4, 2, 64, 64},
    {2, 128, 128, 3, 1, 32, 64},
    {1, 129, 129, 2, 2, 128, 64},
    {1, 1000, 1000, 2, 1, 64, 64},
    {1, 200, 200, 2, 2, 256, 256},
    {2, 129, 129, 2, 1, 64, 64, false},
    {2, 33, 129, 2, 1, 64, 64, true, 96},  // the last queries of a longer sequence
    {1, 1, 300, 4, 2, 64, 64, true, 299},  // decoding
    {1, 50, 129, 2, 1, 40, 24, true, 20},  // the last keys are seen by none
    {1, 64, 64, 2, 2, 64, 64, true, -10},  // the first queries see nothing
    {1, 300, 300, 2, 1, 64, 64, true, 0, 37},
    {2, 200, 200, 2, 2, 64, 64, true, 0, 0, true},
    {1, 300, 300, 2, 2, 64, 64, true, 0, 90, true},
    {1, 200, 200, 2, 1, 64, 64, true, 0, 0, false, 3},
    {2, 129, 129, 2, 2, 128, 64, true, 0, 50, true, 8},
};

class AttentionReferenceGpu : public GpuTest {
 protected:
  // Documents of 1 to about 40 tokens; first_key [B, Tq].
  Twin documents(std::int64_t B, std::int64_t Tq) {
    std::vector<std::int32_t> first(static_cast<std::size_t>(B * Tq));
    for (std::int64_t b = 0; b < B; ++b) {
      std::int32_t start = 0;
      for (std::int64_t t = 0; t < Tq; ++t) {
        if (philox(3, kPurposeTest, static_cast<std::uint64_t>(b), static_cast<std::uint32_t>(t))[0] % 20 == 0)
          start = static_cast<std::int32_t>(t);
        first[static_cast<std::size_t>(b * Tq + t)] = start;
      }
    }
    return integers({B, Tq}, first);
  }

  struct Problem {
    Twin qkv, k_rows, v_rows, first_key, q_indices, k_indices, out, lse, d_out, d_q, d_k, d_v;
  };
  Problem problem(const Case& c) {
    Problem p;
    p.qkv = random({c.B, c.Tq, c.H * c.Dqk + 24});  // queries are a column range of wider rows
    p.k_rows = random({c.B, c.Tk, c.G, c.Dqk});
    p.v_rows = random({c.B, c.Tk, c.G, c.Dv});
    p.out = output({c.B, c.Tq, c.H, c.Dv});
    p.lse = output({c.B, c.H, c.Tq}, DType::f32);
    p.d_out = random({c.B, c.Tq, c.H, c.Dv});
    p.d_q = output({c.B, c.Tq, c.H, c.Dqk});
    p.d_k = output({c.B, c.Tk, c.G, c.Dqk});
    p.d_v = output({c.B, c.Tk, c.G, c.Dv});
    if (c.documents) p.first_key = documents(c.B, c.Tq);
    if (c.k > 0) {
      p.q_indices =
          integers({c.B, c.Tq, c.H, c.k}, std::vector<std::uint8_t>(static_cast<std::size_t>(c.B * c.Tq * c.H * c.k)));
      p.k_indices =
          integers({c.B, c.Tk, c.G, c.k}, std::vector<std::uint8_t>(static_cast<std::size_t>(c.B * c.Tk * c.G * c.k)));
    }
    return p;
  }
  ReferenceForward arguments(const Case& c, const Problem& p, Owned Twin::*s) {
    return {.q = (p.qkv.*s).t.slice(2, 8, c.H * c.Dqk).split_last(c.H),
            .k = (p.k_rows.*s).t,
            .v = (p.v_rows.*s).t,
            .ranges = {.causal = c.causal,
                       .query_offset = c.query_offset,
                       .window = c.window,
                       .first_key = (p.first_key.*s).t},
            .scale = 1.0f / std::sqrt(static_cast<float>(c.Dqk)),
            .q_indices = (p.q_indices.*s).t,
            .k_indices = (p.k_indices.*s).t,
            .out = (p.out.*s).t,
            .lse = (p.lse.*s).t};
  }
  void run(const Case& c, const Problem& p, Context& ctx, Arena& scratch, Owned Twin::*s) {
    const ReferenceForward f = arguments(c, p, s);
    if (c.k > 0) {
      Owned values_q = make(ctx.device(), f.q.dtype, {c.B, c.Tq, c.H, c.k}),
            values_k = make(ctx.device(), f.k.dtype, {c.B, c.Tk, c.G, c.k});
      select_topk(ctx, {f.q, c.k, false, values_q.t, f.q_indices, f.q});
      select_topk(ctx, {f.k, c.k, false, values_k.t, f.k_indices, f.k});
    }
    attention_reference_forward(ctx, f);
    attention_reference_backward(ctx, {f, (p.d_out.*s).t, (p.d_q.*s).t, (p.d_k.*s).t, (p.d_v.*s).t, &scratch});
    if (!ctx.planning) ctx.synchronize();  // before the selected values go out of scope
  }
};

TEST_F(AttentionReferenceGpu, MatchesCpu) {
  for (DType type : kFloatTypes)
    for (const Case& c : kCases) {
      use(type);
      SCOPED_TRACE(fmt::format(
          "{} B={} Tq={} Tk={} H={} G={} Dqk={} Dv={} causal={} offset={} window={} documents={} k={}", name_of(type),
          c.B, c.Tq, c.Tk, c.H, c.G, c.Dqk, c.Dv, c.causal, c.query_offset, c.window, c.documents, c.k));
      const Problem p = problem(c);
      on_cpu([&](Context& ctx, Arena& scratch) { run(c, p, ctx, scratch, &Twin::cpu); });
      on_gpu([&](Context& ctx, Arena& scratch) { run(c, p, ctx, scratch, &Twin::gpu); });
      const bool f32 = type == DType::f32;
      EXPECT_LE(error(p.lse), f32_tolerance(c.Dqk + c.Tk));
      EXPECT_LE(error(p.out), f32 ? 2 * f32_tolerance(c.Dqk + c.Tk) : bf16_tolerance());
      // The gradients subtract sums of like size; the rounded `out` of bf16 enters through D.
      EXPECT_LE(error(p.d_v), f32 ? 4 * f32_tolerance(c.Dqk + c.Tk) : bf16_tolerance(2));
      if (c.Tk > 1) {
        EXPECT_LE(error(p.d_q), f32 ? 8 * f32_tolerance(c.Dqk + c.Tk) : bf16_tolerance(2));
        EXPECT_LE(error(p.d_k), f32 ? 8 * f32_tolerance(c.Dqk + c.Tk) : bf16_tolerance(2));
      }
    }
}

TEST_F(AttentionReferenceGpu, TwoRunsGiveTheSameBits) {
  const Case c{2, 300, 300, 4, 2, 64, 64};
  std::vector<std::byte> first;
  for (int turn = 0; turn < 2; ++turn) {
    use(DType::bf16);
    const Problem p = problem(c);
    on_gpu([&](Context& ctx, Arena& scratch) { run(c, p, ctx, scratch, &Twin::gpu); });
    std::vector<std::byte> all = gpu_bytes(p.out);
    for (const Twin* t : {&p.lse, &p.d_q, &p.d_k, &p.d_v})
      for (std::byte byte : gpu_bytes(*t)) all.push_back(byte);
    if (turn == 0)
      first = all;
    else
      EXPECT_TRUE(first == all);
  }
}

TEST_F(AttentionReferenceGpu, MergeMatchesCpu) {
  for (DType type : kFloatTypes) {
    use(type);
    const Twin out = random({2, 37, 3, 40}), other = random({2, 37, 3, 40});
    std::vector<float> a = normal(2 * 3 * 37, 50), b = normal(2 * 3 * 37, 51);
    const float none = -std::numeric_limits<float>::infinity();
    a[5] = a[6] = b[8] = b[7] = none;
    const Twin lse = filled({2, 3, 37}, a, DType::f32), other_lse = filled({2, 3, 37}, b, DType::f32);
    attention_merge(cpu_, out.cpu.t, lse.cpu.t, other.cpu.t, other_lse.cpu.t);
    attention_merge(*gpu_, out.gpu.t, lse.gpu.t, other.gpu.t, other_lse.gpu.t);
    EXPECT_LE(error(lse), f32_tolerance(1));
    EXPECT_LE(error(out), type == DType::f32 ? f32_tolerance(1) : bf16_tolerance());
  }
}

}  // namespace
}  // namespace sfa::test
