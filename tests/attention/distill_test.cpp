// Attention drawn towards a dense teacher: the gradient against the oracle's, whose upstream gradient has the
// distance's part added in double; off, it is the student alone, bit for bit.
#include <bit>

#include "attention/attention_case.h"

namespace sfa::test {
namespace {

class Distilled : public DeviceTest {
 protected:
  static constexpr std::int64_t B = 2, T = 21;
  AttentionDims dims{4, 2, 32, 16};
  RangeCase range{.window = 9, .first_key = documents(B, T, 0)};
  AttentionInputs in{{B, T, T, dims.H, dims.G, dims.Dqk, dims.Dv}};
  Visible see = visible(range, T);

  static AttentionConfig config(double lambda, const std::string& impl) {
    AttentionConfig c;
    c.type = "sfa";
    c.impl = impl;
    c.k_q = c.k_k = 5;
    c.window = 9;
    c.distill_lambda = lambda;
    return c;
  }
  [[nodiscard]] std::vector<float> packed_rows() const {
    std::vector<float> rows;
    for (std::int64_t n = 0; n < B * T; ++n)
      for (const auto& [from, width] : {std::pair{&in.q, dims.H * dims.Dqk}, std::pair{&in.k, dims.G * dims.Dqk},
                                        std::pair{&in.v, dims.G * dims.Dv}})
        rows.insert(rows.end(), from->begin() + n * width, from->begin() + (n + 1) * width);
    return rows;
  }
  struct Result {
    std::vector<float> out, d_qkv;
    double distance = 0;
  };
  Result run(double lambda, const std::string& impl, const Distillation& on) {
    PlannedLayer layer(ctx, config(lambda, impl), dims, B, T);
    const auto rows = packed_rows();
    ctx.copy(layer.state.qkv.data, ctx.device(), rows.data(), Device::cpu, rows.size() * sizeof(float));
    ctx.synchronize();
    const Ranges ranges = ranges_of(pool, range, B, T);
    const Tensor d_out = pool.floats(in.d_out, {B, T, dims.H, dims.Dv}),
                 d_qkv = pool.poisoned(DType::f32, {B, T, dims.row()});
    layer.attention->distill(on);
    attention_forward(ctx, *layer.attention, layer.state, ranges, layer.scratch);
    attention_backward(ctx, *layer.attention, layer.state, ranges, d_out, d_qkv, layer.scratch);
    Result r{values_of(ctx, layer.state.out), values_of(ctx, d_qkv)};
    if (!on.total.empty()) r.distance = std::bit_cast<double>(elements<std::int64_t>(ctx, on.total).at(0));
    return r;
  }
  Tensor total() { return pool.integers(std::vector<std::int64_t>{0}, {1}); }
};

TEST_P(Distilled, GradientIsTheOraclesWithTheTeacherHeldFixed) {
  const oracle::AttentionShape s = in.s;
  const auto q = sparse_rows(in.q, dims.Dqk, 5), k = sparse_rows(in.k, dims.Dqk, 5);
  const auto student = oracle::attention(s, as<double>(q), as<double>(k), as<double>(in.v), see);
  const auto teacher = oracle::attention(s, as<double>(in.q), as<double>(in.k), as<double>(in.v), see);
  const float scale = 0.7f;
  auto d_out = as<double>(in.d_out);
  double distance = 0;
  for (std::size_t i = 0; i < d_out.size(); ++i) {
    const double difference = student.out[i] - teacher.out[i];
    d_out[i] += static_cast<double>(scale) * difference;
    distance += difference * difference;
  }
  ASSERT_GT(distance, 1) << "the case must tell teacher and student apart";
  const auto g = oracle::attention_backward(s, as<double>(q), as<double>(k), as<double>(in.v), d_out, see);
  const auto d_q = masked_by(g.q, q), d_k = masked_by(g.k, k);
  std::vector<double> want;
  for (std::int64_t n = 0; n < B * T; ++n)
    for (const auto& [from, width] :
         {std::pair{&d_q, dims.H * dims.Dqk}, std::pair{&d_k, dims.G * dims.Dqk}, std::pair{&g.v, dims.G * dims.Dv}})
      want.insert(want.end(), from->begin() + n * width, from->begin() + (n + 1) * width);
  for (const std::string impl : {"reference", "auto"}) {
    SCOPED_TRACE(impl);
    const Result r = run(0.5, impl, {scale, total()});
    // The student's own tolerance in these tests is below 1e-5 at this size; the distance adds two forward passes'
    // error.
    EXPECT_TRUE(near_in_norm(r.d_qkv, want, 1e-5));
    EXPECT_NEAR(r.distance, distance, 1e-4 * distance);
  }
}

TEST_P(Distilled, OffItIsTheStudentAlone) {
  for (const std::string impl : {"reference", "auto"}) {
    const Result alone = run(0, impl, {}), off = run(0.5, impl, {});
    EXPECT_EQ(alone.out, off.out);
    EXPECT_EQ(alone.d_qkv, off.d_qkv);
  }
}

SFA_ON_EVERY_DEVICE(Distilled);

}  // namespace
}  // namespace sfa::test
