// Every row of the attention table through the interface that models use: prepare, core, backward, KV cache.
// The oracle selects by brute force and computes in double; dense is the case that keeps all features.
#include "attention/variant_case.h"
#include "ops/select/support_format.h"

namespace sfa::test {
namespace {

class Variants : public DeviceTest {
 protected:
  // The implementations of config.type that can serve the case on this device in f32, forward alone or backward too.
  std::vector<std::string> implementations(const VariantCase& c, bool training) {
    std::vector<std::string> names;
    for (const AttentionRow& row : attention_table())
      if (row.type == c.config.type && row.device == ctx.device() && (row.trains || !training) &&
          row.why_not(c.config, c.dims, DType::f32).empty())
        names.emplace_back(row.impl);
    return names;
  }

  void check_training(VariantCase c) {
    const AttentionInputs in(c.shape());
    const auto q = c.queries(in.q), k = c.keys(in.k);
    const Visible see = c.pairs(q, k);
    const auto exact = oracle::attention(c.shape(), as<double>(q), as<double>(k), as<double>(in.v), see);
    const auto naive = oracle::attention(c.shape(), q, k, in.v, see);
    auto d_exact = oracle::attention_backward(c.shape(), as<double>(q), as<double>(k), as<double>(in.v),
                                              as<double>(in.d_out), see);
    auto d_naive = oracle::attention_backward(c.shape(), q, k, in.v, in.d_out, see);
    if (c.sparse()) {
      d_exact = {zero_outside(d_exact.q, q), zero_outside(d_exact.k, k), d_exact.v};
      d_naive = {zero_outside(d_naive.q, q), zero_outside(d_naive.k, k), d_naive.v};
    }
    const auto want = packed_gradient(d_exact, c);
    const auto rough = packed_gradient(d_naive, c);
    const auto support = packed_gradient(oracle::AttentionGradients<float>{q, k, in.v}, c);  // zero exactly outside it
    const std::vector<std::string> names = implementations(c, true);
    ASSERT_FALSE(names.empty());
    for (const std::string& impl : names) {
      c.config.impl = impl;
      SCOPED_TRACE(::testing::Message() << c.config.type << "/" << impl << " k " << c.config.k_q << "/" << c.config.k_k
                                        << " " << c.config.selection << " " << c.config.zero_overlap << " T " << c.T
                                        << " H " << c.dims.H << " G " << c.dims.G << " Dqk " << c.dims.Dqk << " Dv "
                                        << c.dims.Dv << " window " << c.ranges.window
                                        << (c.ranges.first_key.empty() ? "" : " documents"));
      PlannedLayer layer(ctx, c.config, c.dims, c.B, c.T);
      const auto rows = packed(in, c.dims);
      const Ranges ranges = ranges_of(pool, c.ranges, c.B, c.T);
      const Tensor d_out = pool.floats(in.d_out, {c.B, c.T, c.dims.H, c.dims.Dv}),
                   d_qkv = pool.poisoned(DType::f32, {c.B, c.T, c.dims.row()});
      for (int times = 0; times < 2; ++times) {
        ctx.copy(layer.state.qkv.data, ctx.device(), rows.data(), Device::cpu, rows.size() * sizeof(float));
        attention_forward(ctx, *layer.attention, layer.state, ranges, layer.scratch);
        EXPECT_TRUE(near_in_norm(values_of(ctx, layer.state.out), exact.out, derived_tolerance(naive.out, exact.out)));
        expect_lse(values_of(ctx, layer.state.lse), exact.lse, lse_tolerance(naive.lse, exact.lse));
        attention_backward(ctx, *layer.attention, layer.state, ranges, d_out, d_qkv, layer.scratch);
        const auto got = values_of(ctx, d_qkv);
        EXPECT_TRUE(near_in_norm(got, want, derived_tolerance(rough, want)));
        for (std::size_t i = 0; c.sparse() && i < want.size(); ++i) {
          if (support[i] == 0.0f) {
            ASSERT_EQ(got[i], 0.0f) << "a gradient outside the support, at " << i;
          }
        }
      }
    }
  }

  // Feeding the tokens in chunks through a KV cache gives what one pass over all of them gives.
  void check_cache(VariantCase c, const std::vector<std::int64_t>& chunks) {
    const AttentionInputs in(c.shape());
    const auto q = c.queries(in.q), k = c.keys(in.k);
    const Visible see = c.pairs(q, k);
    const auto exact = oracle::attention(c.shape(), as<double>(q), as<double>(k), as<double>(in.v), see);
    const auto naive = oracle::attention(c.shape(), q, k, in.v, see);
    const auto rows = packed(in, c.dims);
    for (const std::string& impl : implementations(c, false)) {
      c.config.impl = impl;
      SCOPED_TRACE(c.config.type + "/" + impl);
      const auto attention = make_attention(c.config, c.dims, ctx.device(), DType::f32);
      Arena cache_arena("cache", ctx.device());
      attention->plan_cache(cache_arena, c.B, c.T + 2);
      cache_arena.bind();
      KvCache cache = attention->plan_cache(cache_arena, c.B, c.T + 2);
      expect_promised_bytes(*attention, cache, c.B);
      std::vector<float> out(exact.out.size());
      for (const std::int64_t n : chunks) {
        const std::int64_t at = cache.length;
        Arena saved("saved", ctx.device()), scratch("scratch", ctx.device());
        Context counting = Context::for_planning(ctx.device());
        KvCache copy = cache;
        AttentionState state = attention->plan(saved, scratch, c.B, n);
        const Ranges ranges{.causal = true, .window = c.ranges.window, .first_key = {}};
        attention_forward_cached(counting, *attention, state, copy, ranges, scratch);
        saved.bind();
        scratch.bind();
        state = attention->plan(saved, scratch, c.B, n);
        for (std::int64_t b = 0; b < c.B; ++b) {
          const std::size_t row = static_cast<std::size_t>(c.dims.row());
          ctx.copy(state.qkv.slice(0, b, 1).data, ctx.device(),
                   rows.data() + static_cast<std::size_t>(b * c.T + at) * row, Device::cpu,
                   static_cast<std::size_t>(n) * row * sizeof(float));
        }
        attention_forward_cached(ctx, *attention, state, cache, ranges, scratch);
        ASSERT_EQ(cache.length, at + n);
        const auto got = values_of(ctx, state.out);
        const std::int64_t width = c.dims.H * c.dims.Dv;
        for (std::int64_t b = 0; b < c.B; ++b)
          std::copy_n(got.begin() + b * n * width, n * width, out.begin() + (b * c.T + at) * width);
      }
      EXPECT_TRUE(near_in_norm(out, exact.out, derived_tolerance(naive.out, exact.out)));
      // The cache is as large as the plan said, and one token too many is refused.
      AttentionState one = attention->plan(cache_arena, cache_arena, 0, 0);
      cache.length = cache.capacity;
      one.out = Tensor(nullptr, DType::f32, ctx.device(), {c.B, 1, c.dims.H, c.dims.Dv});
      Arena none("none", ctx.device());
      EXPECT_THROW(attention_forward_cached(ctx, *attention, one, cache, Ranges{}, none), Error);
    }
  }

  // What is in a cache is what the cost says, in the smaller of the two formats of a support.
  static void expect_promised_bytes(const Attention& attention, const KvCache& cache, std::int64_t B) {
    double bytes = 0;
    for (const Tensor* t :
         {&cache.keys.dense, &cache.keys.values, &cache.keys.indices, &cache.keys.mask, &cache.keys.v})
      if (!t->empty()) bytes += static_cast<double>(t->bytes());
    EXPECT_DOUBLE_EQ(bytes, attention.cost(1).kv_bytes_per_token * static_cast<double>(B * cache.capacity));
    if (attention.config().type != "sfa") return;
    const bool mask = support_format(attention.dims().Dqk, attention.config().k_k).mask;
    EXPECT_EQ(cache.keys.mask.empty(), !mask);
    EXPECT_EQ(cache.keys.indices.empty(), mask);
  }

  static AttentionConfig sfa(int k_q, int k_k, const std::string& selection = "topk",
                             const std::string& zero_overlap = "score") {
    AttentionConfig c;
    c.type = "sfa";
    c.k_q = k_q;
    c.k_k = k_k;
    c.selection = selection;
    c.zero_overlap = zero_overlap;
    return c;
  }
  static AttentionConfig dense() { return {}; }
  static AttentionConfig windowed(AttentionConfig c, std::int64_t window) {
    c.window = window;
    return c;
  }
};

TEST(SfaFormula, TheMaskedGradientIsTheDerivativeThroughSelection) {
  const oracle::AttentionShape s{1, 5, 5, 2, 1, 6, 3};
  const AttentionInputs in(s);
  const Visible see = visible({}, s.Tq);
  const auto v = as<double>(in.v), d_out = as<double>(in.d_out);
  // Supports stay put under steps of 1e-5: no two magnitudes of these rows are that close.
  const auto select = [&](const std::vector<double>& x, std::int64_t k) {
    const std::vector<float> sparse = sparse_rows(std::vector<float>(x.begin(), x.end()), s.Dqk, k);
    std::vector<double> out(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) out[i] = sparse[i] != 0.0f ? x[i] : 0.0;
    return out;
  };
  const auto q = as<double>(in.q), k = as<double>(in.k);
  const auto value = [&](const auto& a, const auto& b) {
    return dot(oracle::attention(s, select(a, 2), select(b, 3), v, see).out, d_out);
  };
  const auto g = oracle::attention_backward(s, select(q, 2), select(k, 3), v, d_out, see);
  EXPECT_TRUE(near_in_norm(zero_outside(g.q, sparse_rows(in.q, s.Dqk, 2)),
                           numeric_gradient([&](const auto& a) { return value(a, k); }, q), 1e-8));
  EXPECT_TRUE(near_in_norm(zero_outside(g.k, sparse_rows(in.k, s.Dqk, 3)),
                           numeric_gradient([&](const auto& a) { return value(q, a); }, k), 1e-8));
}

TEST_P(Variants, Dense) {
  check_training({dense(), {4, 4, 16, 16}, 2, 19, {}});
  check_training({dense(), {4, 2, 16, 24}, 2, 33, {}});
  check_training({dense(), {6, 1, 10, 7}, 1, 12, {}});
  check_training({windowed(dense(), 5), {2, 2, 32, 32}, 2, 40, {.window = 5, .first_key = {}}});
  check_training({dense(), {2, 1, 16, 16}, 2, 21, {.first_key = documents(2, 21, 0)}});
}

TEST_P(Variants, SfaOfSeveralWidths) {
  for (const int k : {1, 2, 8}) check_training({sfa(k, k), {4, 4, 32, 32}, 2, 21, {}});
  check_training({sfa(8, 8), {2, 2, 64, 64}, 1, 70, {}});
  check_training({sfa(16, 16), {2, 1, 128, 64}, 1, 33, {}});
  check_training({sfa(32, 32), {2, 2, 32, 32}, 1, 9, {}});  // every feature kept: dense
  check_training({sfa(8, 8), {1, 1, 256, 16}, 1, 10, {}});
}

TEST_P(Variants, SfaWithDifferentSidesAndHeads) {
  check_training({sfa(4, 12), {4, 2, 32, 16}, 2, 17, {}});
  check_training({sfa(9, 3), {6, 2, 20, 40}, 2, 18, {}});
  check_training({windowed(sfa(4, 4), 6), {2, 1, 16, 16}, 2, 23, {.window = 6, .first_key = {}}});
  check_training({sfa(4, 4), {2, 2, 16, 16}, 2, 23, {.first_key = documents(2, 23, 0)}});
}

// A factor of a power of two of what is usual is the same as queries scaled by it, which selects the same features.
TEST_P(Variants, ScoresByAnotherFactor) {
  const AttentionDims dims{4, 2, 16, 24};
  constexpr float kTimes = 4;
  for (AttentionConfig config : {dense(), sfa(4, 6), sfa(4, 6, "topk_2of4"), sfa(2, 3, "topk", "mask")}) {
    VariantCase plain{config, dims, 2, 19, {}}, scaled = plain;
    scaled.config.score_scale = kTimes * dims.scale();
    AttentionInputs in(plain.shape());
    const auto rows = packed(in, dims);
    for (float& q : in.q) q *= kTimes;
    const auto times = packed(in, dims);
    for (const std::string& impl : implementations(plain, true)) {
      SCOPED_TRACE(config.type + "/" + impl + " " + config.selection);
      plain.config.impl = scaled.config.impl = impl;
      PlannedLayer a(ctx, plain.config, plain.dims, plain.B, plain.T),
          b(ctx, scaled.config, scaled.dims, scaled.B, scaled.T);
      const Tensor d_out = pool.floats(in.d_out, {2, 19, dims.H, dims.Dv});
      const auto gradient = [&](PlannedLayer& layer, const std::vector<float>& from) {
        const Tensor d_qkv = pool.poisoned(DType::f32, {2, 19, dims.row()});
        ctx.copy(layer.state.qkv.data, ctx.device(), from.data(), Device::cpu, from.size() * sizeof(float));
        attention_forward(ctx, *layer.attention, layer.state, Ranges{}, layer.scratch);
        attention_backward(ctx, *layer.attention, layer.state, Ranges{}, d_out, d_qkv, layer.scratch);
        return values_of(ctx, d_qkv);
      };
      std::vector<float> want = gradient(a, times);
      const std::vector<float> got = gradient(b, rows);
      for (std::size_t i = 0; i < want.size(); ++i)
        if (static_cast<std::int64_t>(i) % dims.row() < dims.H * dims.Dqk) want[i] *= kTimes;  // of q, not of 4 q
      EXPECT_TRUE(near_in_norm(got, as<double>(want), 1e-5));
      EXPECT_TRUE(near_in_norm(values_of(ctx, b.state.out), as<double>(values_of(ctx, a.state.out)), 1e-6));
    }
  }
}

// Supports planned for more features are used at any smaller k, and give what a layer of that k gives.
TEST_P(Variants, FewerFeaturesThanWerePlanned) {
  for (const std::string selection : {"topk", "topk_2of4", "topk_pairs"}) {
    VariantCase wide{sfa(4, 2, selection), {4, 2, 32, 16}, 2, 17, {}}, narrow = wide;
    wide.config.k_from = 16;
    const AttentionInputs in(wide.shape());
    const auto rows = packed(in, wide.dims);
    for (const std::string& impl : implementations(wide, true)) {
      wide.config.impl = narrow.config.impl = impl;
      PlannedLayer annealed(ctx, wide.config, wide.dims, wide.B, wide.T);
      const Tensor d_out = pool.floats(in.d_out, {2, 17, wide.dims.H, wide.dims.Dv});
      const auto results = [&](PlannedLayer& layer) {
        const Tensor d_qkv = pool.poisoned(DType::f32, {2, 17, wide.dims.row()});
        ctx.copy(layer.state.qkv.data, ctx.device(), rows.data(), Device::cpu, rows.size() * sizeof(float));
        attention_forward(ctx, *layer.attention, layer.state, Ranges{}, layer.scratch);
        attention_backward(ctx, *layer.attention, layer.state, Ranges{}, d_out, d_qkv, layer.scratch);
        return std::pair(values_of(ctx, layer.state.out), values_of(ctx, d_qkv));
      };
      for (const ActiveFeatures k : {ActiveFeatures{16, 16}, {10, 8}, {4, 2}, {12, 2}}) {
        SCOPED_TRACE(::testing::Message() << impl << " " << selection << " " << k.q << "/" << k.k);
        narrow.config.k_q = k.q;
        narrow.config.k_k = k.k;
        PlannedLayer own(ctx, narrow.config, narrow.dims, narrow.B, narrow.T);
        annealed.attention->activate(k);
        EXPECT_EQ(results(annealed), results(own));
        EXPECT_EQ(annealed.state.k.values.dim(3), k.k);
      }
    }
  }
}

TEST_P(Variants, SfaTwoOfFour) {
  for (const int k : {1, 4, 8, 16}) check_training({sfa(k, 6, "topk_2of4"), {2, 1, 32, 16}, 2, 15, {}});
}

TEST_P(Variants, SfaOfWholePairs) {
  for (const int k : {2, 4, 8, 16}) check_training({sfa(k, 6, "topk_pairs"), {2, 1, 32, 16}, 2, 15, {}});
  check_training({sfa(16, 16, "topk_pairs"), {2, 2, 128, 64}, 1, 33, {}});
  check_training({sfa(4, 4, "topk_pairs"), {2, 1, 10, 16}, 2, 9, {}});
}

TEST_P(Variants, SfaMaskedWhereNoFeatureIsShared) {
  for (const int k : {1, 2, 5}) check_training({sfa(k, k, "topk", "mask"), {4, 2, 32, 16}, 2, 21, {}});
  check_training({windowed(sfa(2, 3, "topk_2of4", "mask"), 6),
                  {2, 2, 32, 16},
                  2,
                  21,
                  {.window = 6, .first_key = documents(2, 21, 0)}});
}

TEST_P(Variants, CacheInChunks) {
  for (const auto& chunks : std::vector<std::vector<std::int64_t>>{{1, 1, 1, 1, 1, 1, 1, 1, 1}, {4, 1, 1, 3}, {9}}) {
    check_cache({dense(), {4, 2, 16, 8}, 2, 9, {}}, chunks);
    check_cache({windowed(dense(), 3), {4, 2, 16, 8}, 2, 9, {.window = 3, .first_key = {}}}, chunks);
    check_cache({sfa(4, 4), {4, 2, 16, 8}, 2, 9, {}}, chunks);
    check_cache({sfa(3, 5, "topk_2of4"), {2, 1, 32, 32}, 1, 9, {}}, chunks);
    check_cache({sfa(4, 6, "topk_pairs"), {2, 1, 32, 32}, 1, 9, {}}, chunks);
    check_cache({sfa(2, 2, "topk", "mask"), {2, 2, 16, 16}, 2, 9, {}}, chunks);
  }
}

// Supports as one bit a feature: just beyond d / 8 and just not, odd k, half of the features and more, all of them.
TEST_P(Variants, CacheOfMasks) {
  for (const auto& chunks : std::vector<std::vector<std::int64_t>>{{4, 1, 1, 3}, {9}}) {
    check_cache({sfa(5, 5), {4, 2, 32, 16}, 2, 9, {}}, chunks);
    check_cache({sfa(8, 8), {2, 1, 64, 16}, 1, 9, {}}, chunks);
    check_cache({sfa(8, 9), {2, 1, 64, 16}, 1, 9, {}}, chunks);
    check_cache({sfa(28, 28), {2, 2, 64, 64}, 2, 9, {}}, chunks);
    check_cache({sfa(64, 38), {4, 2, 64, 64}, 2, 9, {}}, chunks);
    check_cache({sfa(13, 13), {2, 1, 96, 32}, 1, 9, {}}, chunks);
    check_cache({sfa(10, 17), {2, 1, 128, 32}, 1, 9, {}}, chunks);
    check_cache({sfa(64, 128), {2, 1, 256, 16}, 1, 9, {}}, chunks);
    check_cache({sfa(20, 20), {2, 1, 20, 16}, 1, 9, {}}, chunks);
    check_cache({sfa(4, 7, "topk", "mask"), {2, 2, 32, 16}, 2, 9, {}}, chunks);
  }
  // Decoding has a path of its own on the CPU from 65 keys on.
  check_cache({sfa(64, 28), {4, 2, 64, 32}, 2, 80, {}}, {75, 1, 1, 3});
  check_cache({windowed(sfa(9, 9), 40), {4, 4, 64, 32}, 1, 80, {.window = 40, .first_key = {}}}, {30, 46, 1, 3});
}

SFA_ON_EVERY_DEVICE(Variants);

}  // namespace
}  // namespace sfa::test
