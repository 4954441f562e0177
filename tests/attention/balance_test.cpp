// The load balance within attention, by every implementation that trains: the rows are still there when backward asks
// for them, gradients get the formula's part and nothing else, and without weight all is as without the option.
#include <bit>

#include "attention/attention_case.h"
#include "support/balance.h"

namespace sfa::test {
namespace {

class Balanced : public DeviceTest {
 protected:
  struct Result {
    std::vector<float> out, d_qkv;
    BalanceCase q, k;
    double total = 0;
  };

  Result run(const AttentionConfig& config, const AttentionDims& dims, std::int64_t B, std::int64_t T, DType type,
             float scale) {
    PlannedLayer layer(ctx, config, dims, B, T, type);
    const auto rows = normal(B * T * dims.row(), 1), upstream = normal(B * T * dims.H * dims.Dv, 2);
    const Tensor from = pool.floats(rows, {B, T, dims.row()}, type),
                 d_out = pool.floats(upstream, {B, T, dims.H, dims.Dv}, type),
                 d_qkv = pool.poisoned(type, {B, T, dims.row()}),
                 total = pool.integers(std::vector<std::int64_t>{0}, {1});
    ctx.copy(layer.state.qkv.data, ctx.device(), from.data, ctx.device(), static_cast<std::size_t>(from.bytes()));
    layer.attention->balance({scale, total});
    attention_forward(ctx, *layer.attention, layer.state, {}, layer.scratch);
    attention_backward(ctx, *layer.attention, layer.state, {}, d_out, d_qkv, layer.scratch);
    const PackedViews views = packed_views(from, dims);
    Result r{values_of(ctx, layer.state.out), values_of(ctx, d_qkv), {}, {}};
    const auto side = [&](const Tensor& x, const Tensor& indices) {
      return BalanceCase{B * T,
                         x.dim(2),
                         dims.Dqk,
                         indices.dim(3),
                         as<double>(values_of(ctx, x)),
                         elements<std::uint8_t>(ctx, indices)};
    };
    r.q = side(views.q, layer.state.q.indices);
    r.k = side(views.k, layer.state.k.indices);
    r.total = std::bit_cast<double>(elements<std::int64_t>(ctx, total).at(0));
    return r;
  }

  void check(AttentionConfig config, const AttentionDims& dims, std::int64_t B, std::int64_t T, DType type) {
    config.type = "sfa";
    const float scale = 0.25f;
    for (const AttentionRow& row : attention_table()) {
      if (row.type != "sfa" || row.device != ctx.device() || !row.trains || !row.why_not(config, dims, type).empty())
        continue;
      config.impl = row.impl;
      SCOPED_TRACE(::testing::Message() << row.impl << " " << config.selection << " k " << config.k_q << "/"
                                        << config.k_k << " Dqk " << dims.Dqk << " " << name_of(type));
      config.balance = 0;
      const Result plain = run(config, dims, B, T, type, scale);
      config.balance = 0.01;
      const Result off = run(config, dims, B, T, type, 0), on = run(config, dims, B, T, type, scale);
      EXPECT_EQ(plain.out, on.out);
      EXPECT_EQ(plain.d_qkv, off.d_qkv);
      EXPECT_EQ(plain.total, 0);
      EXPECT_EQ(off.total, 0);
      const auto d_q = balance_gradient(on.q), d_k = balance_gradient(on.k);
      std::vector<double> want = as<double>(plain.d_qkv);
      for (std::int64_t n = 0; n < B * T; ++n) {
        const std::int64_t Q = dims.H * dims.Dqk, K = dims.G * dims.Dqk;
        for (std::int64_t i = 0; i < Q + K; ++i)
          want[static_cast<std::size_t>(n * dims.row() + i)] +=
              static_cast<double>(scale) *
              (i < Q ? d_q[static_cast<std::size_t>(n * Q + i)] : d_k[static_cast<std::size_t>(n * K + i - Q)]);
      }
      EXPECT_TRUE(near_in_norm(on.d_qkv, want, type == DType::bf16 ? 0x1p-9 : 1e-6));
      const double total = balance_total(on.q, kept_shares(on.q)) + balance_total(on.k, kept_shares(on.k));
      EXPECT_NEAR(on.total, total, 1e-6 * total);
    }
  }
};

TEST_P(Balanced, GradientsGetTheFormulasPart) {
  for (const DType type : {DType::f32, DType::bf16}) {
    if (type == DType::bf16 && !ctx.on_cuda()) continue;
    for (const std::string selection : {"topk", "topk_2of4", "topk_pairs"}) {
      AttentionConfig c;
      c.selection = selection;
      c.k_q = c.k_k = 8;
      check(c, {4, 2, 64, 64}, 2, 70, type);
      c.k_k = 6;
      check(c, {2, 1, 128, 64}, 1, 130, type);
      check(c, {2, 2, 32, 16}, 2, 21, type);
    }
  }
  AttentionConfig c;
  c.k_q = c.k_k = 3;
  check(c, {2, 1, 10, 7}, 2, 9, DType::f32);
  c.zero_overlap = "mask";
  check(c, {2, 1, 12, 8}, 2, 9, DType::f32);
}

SFA_ON_EVERY_DEVICE(Balanced);

}  // namespace
}  // namespace sfa::test
