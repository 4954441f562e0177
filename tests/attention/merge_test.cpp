// Merging partial attentions over disjoint keys must give the attention over their union.
#include "attention/attention_case.h"

namespace sfa::test {
namespace {

class Merge : public DeviceTest {
 protected:
  // Values of so many features.
  void join(std::int64_t width);
};

// Values of more and fewer features than a warp has lanes, and of no even number.
TEST_P(Merge, PartsOfTheKeysJoinToTheWhole) {
  for (const std::int64_t width : {6, 7, 16, 24, 64, 192}) {
    SCOPED_TRACE(width);
    join(width);
  }
}

void Merge::join(std::int64_t width) {
  const oracle::AttentionShape s{2, 10, 10, 4, 2, 8, width};
  const AttentionInputs in(s);
  const auto q = as<double>(in.q), k = as<double>(in.k), v = as<double>(in.v);
  for (const bool causal : {true, false}) {
    const RangeCase r{.causal = causal, .first_key = {}};
    const Visible see = visible(r, s.Tq);
    const auto whole = oracle::attention(s, q, k, v, see);
    const auto naive = oracle::attention(s, in.q, in.k, in.v, see);
    // Three parts; with a causal mask the first rows see nothing of the later ones, and row 0 of part 2 and 3 is empty.
    const std::int64_t cuts[] = {0, 3, 4, 10};
    Tensor out, lse;
    for (int part = 0; part < 3; ++part) {
      const Visible within = [&, part](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
        return see(b, h, i, j) && j >= cuts[part] && j < cuts[part + 1];
      };
      const auto p = oracle::attention(s, in.q, in.k, in.v, within);
      const Tensor part_out = pool.floats(p.out, {s.B, s.Tq, s.H, s.Dv}),
                   part_lse = pool.floats(p.lse, {s.B, s.H, s.Tq});
      if (part == 0) {
        out = part_out;
        lse = part_lse;
      } else {
        attention_merge(ctx, out, lse, part_out, part_lse);
      }
    }
    EXPECT_TRUE(near_in_norm(values_of(ctx, out), whole.out, derived_tolerance(naive.out, whole.out)));
    expect_lse(values_of(ctx, lse), whole.lse, lse_tolerance(naive.lse, whole.lse));
  }
}

TEST_P(Merge, NothingMergedWithNothingIsNothing) {
  const float none = -std::numeric_limits<float>::infinity();
  const Tensor out = pool.zeros(DType::f32, {1, 2, 1, 3}), lse = pool.floats({none, 0.5f}, {1, 1, 2}),
               other = pool.zeros(DType::f32, {1, 2, 1, 3}), other_lse = pool.floats({none, none}, {1, 1, 2});
  const Tensor kept = pool.floats({0, 0, 0, 1, 2, 3}, {1, 2, 1, 3});
  attention_merge(ctx, out, lse, other, other_lse);
  EXPECT_EQ(values_of(ctx, out), std::vector<float>(6, 0.0f));
  EXPECT_EQ(values_of(ctx, lse), (std::vector<float>{none, 0.5f}));
  attention_merge(ctx, kept, lse, other, other_lse);
  EXPECT_EQ(values_of(ctx, kept), (std::vector<float>{0, 0, 0, 1, 2, 3})) << "merging with nothing changes nothing";
}

SFA_ON_EVERY_DEVICE(Merge);

}  // namespace
}  // namespace sfa::test
