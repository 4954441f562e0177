// Plain attention over all combinations of ranges and head layouts, against the formula in double.
#include "attention/reference.h"

#include "attention/attention_case.h"

namespace sfa::test {
namespace {

// A row that sees one key has no gradient for q and k: dP - D cancels between numbers of about this size.
constexpr double kTerms = 1.0;

TEST(AttentionFormula, BackwardIsTheDerivativeOfForward) {
  const oracle::AttentionShape s{2, 4, 5, 4, 2, 3, 2};
  const RangeCase r{.causal = true, .query_offset = 1, .window = 3, .first_key = {}};
  const AttentionInputs in(s);
  const auto q = as<double>(in.q), k = as<double>(in.k), v = as<double>(in.v), d_out = as<double>(in.d_out);
  const Visible see = visible(r, s.Tq);
  const auto value = [&](const auto& a, const auto& b, const auto& c) {
    return dot(oracle::attention(s, a, b, c, see).out, d_out);
  };
  const auto g = oracle::attention_backward(s, q, k, v, d_out, see);
  EXPECT_TRUE(near_in_norm(g.q, numeric_gradient([&](const auto& a) { return value(a, k, v); }, q), 1e-8));
  EXPECT_TRUE(near_in_norm(g.k, numeric_gradient([&](const auto& a) { return value(q, a, v); }, k), 1e-8));
  EXPECT_TRUE(near_in_norm(g.v, numeric_gradient([&](const auto& a) { return value(q, k, a); }, v), 1e-8));
}

class Reference : public DeviceTest {
 protected:
  void check(const oracle::AttentionShape& s, const RangeCase& r) {
    SCOPED_TRACE(::testing::Message() << "B " << s.B << " Tq " << s.Tq << " Tk " << s.Tk << " H " << s.H << " G " << s.G
                                      << " Dqk " << s.Dqk << " Dv " << s.Dv << (r.causal ? " causal" : "") << " offset "
                                      << r.query_offset << " window " << r.window
                                      << (r.first_key.empty() ? "" : " documents"));
    const AttentionInputs in(s);
    const Visible see = visible(r, s.Tq);
    const auto exact = oracle::attention(s, as<double>(in.q), as<double>(in.k), as<double>(in.v), see);
    const auto naive = oracle::attention(s, in.q, in.k, in.v, see);
    const auto d_exact =
        oracle::attention_backward(s, as<double>(in.q), as<double>(in.k), as<double>(in.v), as<double>(in.d_out), see);
    const auto d_naive = oracle::attention_backward(s, in.q, in.k, in.v, in.d_out, see);

    // Queries, keys and values side by side in packed rows, outputs contiguous, gradients packed again.
    const ReferenceForward f{.q = pool.floats(in.q, {s.B, s.Tq, s.H, s.Dqk}),
                             .k = pool.floats(in.k, {s.B, s.Tk, s.G, s.Dqk}),
                             .v = pool.floats(in.v, {s.B, s.Tk, s.G, s.Dv}),
                             .ranges = ranges_of(pool, r, s.B, s.Tq),
                             .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(s.Dqk))),
                             .q_indices = {},
                             .k_indices = {},
                             .out = pool.poisoned(DType::f32, {s.B, s.Tq, s.H, s.Dv}),
                             .lse = pool.poisoned(DType::f32, {s.B, s.H, s.Tq})};
    attention_reference_forward(ctx, f);
    EXPECT_TRUE(near_in_norm(values_of(ctx, f.out), exact.out, derived_tolerance(naive.out, exact.out)));
    expect_lse(values_of(ctx, f.lse), exact.lse, lse_tolerance(naive.lse, exact.lse));

    const Tensor d_q = pool.poisoned(DType::f32, {s.B, s.Tq, s.H * s.Dqk + 3}).slice(2, 3, s.H * s.Dqk).split_last(s.H),
                 d_k = pool.poisoned(DType::f32, {s.B, s.Tk, s.G * s.Dqk + 2}).slice(2, 0, s.G * s.Dqk).split_last(s.G),
                 d_v = pool.poisoned(DType::f32, {s.B, s.Tk, s.G, s.Dv}),
                 d_out = pool.floats(in.d_out, {s.B, s.Tq, s.H, s.Dv});
    for (int times = 0; times < 2; ++times) {
      run_planned(ctx, [&](Context& on, Arena& scratch) {
        attention_reference_backward(on, {f, d_out, d_q, d_k, d_v, &scratch});
      });
      EXPECT_TRUE(
          near_in_norm(values_of(ctx, d_q), d_exact.q, derived_tolerance(d_naive.q, d_exact.q, kTerms), kTerms));
      EXPECT_TRUE(
          near_in_norm(values_of(ctx, d_k), d_exact.k, derived_tolerance(d_naive.k, d_exact.k, kTerms), kTerms));
      EXPECT_TRUE(near_in_norm(values_of(ctx, d_v), d_exact.v, derived_tolerance(d_naive.v, d_exact.v)));
    }
  }
};

TEST_P(Reference, EveryCombinationOfRanges) {
  const std::int64_t B = 2, Tq = 9, Tk = 13;
  for (const bool causal : {true, false})
    for (const std::int64_t window : {0, 1, 4, 100})
      for (const std::int64_t offset :
           {0, 4, -5, 20})  // -5: the first rows see no key; 20: all of them, or a window beyond the end
        for (const bool by_document : {false, true})
          check({B, Tq, Tk, 2, 1, 8, 8},
                {causal, offset, window,
                 by_document ? documents(B, Tq, std::max<std::int64_t>(offset, 0)) : std::vector<std::int32_t>{}});
}

TEST_P(Reference, HeadLayouts) {
  for (const auto& [H, G] : std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 1}, {4, 4}, {4, 2}, {6, 2}, {5, 1}})
    for (const auto& [Dqk, Dv] :
         std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 1}, {16, 32}, {32, 16}, {7, 5}, {64, 64}, {256, 3}})
      check({2, 11, 11, H, G, Dqk, Dv}, {});
}

TEST_P(Reference, Lengths) {
  for (const std::int64_t T : {1, 2, 31, 33, 64, 100}) check({1, T, T, 2, 2, 8, 8}, {});
  check({1, 1, 70, 2, 1, 8, 8}, {.query_offset = 69, .first_key = {}});                // decoding
  check({1, 5, 70, 2, 1, 8, 8}, {.query_offset = 65, .window = 16, .first_key = {}});  // a chunk within a window
  check({1, 40, 3, 2, 1, 8, 8}, {.causal = false, .first_key = {}});
}

TEST_P(Reference, LargeScoresStayFinite) {
  const oracle::AttentionShape s{1, 6, 6, 1, 1, 4, 4};
  const AttentionInputs in(s, 60.0f);
  const Visible see = visible({}, s.Tq);
  const auto exact = oracle::attention(s, as<double>(in.q), as<double>(in.k), as<double>(in.v), see);
  const auto naive = oracle::attention(s, in.q, in.k, in.v, see);
  const ReferenceForward f{.q = pool.floats(in.q, {1, 6, 1, 4}),
                           .k = pool.floats(in.k, {1, 6, 1, 4}),
                           .v = pool.floats(in.v, {1, 6, 1, 4}),
                           .ranges = {},
                           .scale = 0.5f,
                           .q_indices = {},
                           .k_indices = {},
                           .out = pool.zeros(DType::f32, {1, 6, 1, 4}),
                           .lse = pool.zeros(DType::f32, {1, 1, 6})};
  attention_reference_forward(ctx, f);
  EXPECT_TRUE(near_in_norm(values_of(ctx, f.out), exact.out, derived_tolerance(naive.out, exact.out)));
  expect_lse(values_of(ctx, f.lse), exact.lse, lse_tolerance(naive.lse, exact.lse));
}

SFA_ON_EVERY_DEVICE(Reference);

TEST(ReferenceRounding, OutputsAndGradientsAreBf16AndStatisticsAreNot) {
  Context ctx(Device::cpu);
  ctx.round_bf16 = true;
  Pool pool(ctx);
  const oracle::AttentionShape s{2, 20, 20, 4, 2, 16, 8};
  AttentionInputs in(s);
  for (auto* x : {&in.q, &in.k, &in.v, &in.d_out}) *x = rounded(*x);
  const Visible see = visible({}, s.Tq);
  const auto exact = oracle::attention(s, as<double>(in.q), as<double>(in.k), as<double>(in.v), see);
  const ReferenceForward f{.q = pool.floats(in.q, {2, 20, 4, 16}),
                           .k = pool.floats(in.k, {2, 20, 2, 16}),
                           .v = pool.floats(in.v, {2, 20, 2, 8}),
                           .ranges = {},
                           .scale = 0.25f,
                           .q_indices = {},
                           .k_indices = {},
                           .out = pool.zeros(DType::f32, {2, 20, 4, 8}),
                           .lse = pool.zeros(DType::f32, {2, 4, 20})};
  attention_reference_forward(ctx, f);
  EXPECT_TRUE(all_bf16(values_of(ctx, f.out)));
  EXPECT_TRUE(near_in_norm(values_of(ctx, f.out), exact.out, kUnitBf16 / 2));
  EXPECT_FALSE(all_bf16(values_of(ctx, f.lse)));
  EXPECT_TRUE(near_in_norm(values_of(ctx, f.lse), exact.lse, 1e-6));
  const Tensor d_q = pool.zeros(DType::f32, {2, 20, 4, 16}), d_k = pool.zeros(DType::f32, {2, 20, 2, 16}),
               d_v = pool.zeros(DType::f32, {2, 20, 2, 8}), d_out = pool.floats(in.d_out, {2, 20, 4, 8});
  run_planned(ctx, [&](Context& on, Arena& scratch) {
    attention_reference_backward(on, {f, d_out, d_q, d_k, d_v, &scratch});
  });
  const auto g =
      oracle::attention_backward(s, as<double>(in.q), as<double>(in.k), as<double>(in.v), as<double>(in.d_out), see);
  for (const Tensor& t : {d_q, d_k, d_v}) EXPECT_TRUE(all_bf16(values_of(ctx, t)));
  EXPECT_TRUE(near_in_norm(values_of(ctx, d_q), g.q, kUnitBf16));  // the rounded output enters through D = d_out . out
  EXPECT_TRUE(near_in_norm(values_of(ctx, d_k), g.k, kUnitBf16));
  EXPECT_TRUE(near_in_norm(values_of(ctx, d_v), g.v, kUnitBf16 / 2));
}

}  // namespace
}  // namespace sfa::test
