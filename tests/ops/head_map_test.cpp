// The map of every head against the formula in double: shared and one a head, among columns of other things, one head,
// odd widths.
#include "ops/head_map/head_map.h"

#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/devices.h"
#include "support/oracle.h"

namespace sfa::test {
namespace {

struct Shape {
  std::int64_t N, heads, D;
};
constexpr Shape kShapes[] = {{1, 1, 1}, {19, 3, 8}, {33, 2, 7}, {130, 4, 16}, {65, 1, 24}};

class HeadMapTest : public DeviceTest {
 protected:
  // Heads as columns [at, at + heads*D) of rows that are `wide`; everything else is 7.
  struct Among {
    Tensor all, heads;
  };
  Among among(const std::vector<float>& rows, const Shape& s) {
    const std::int64_t columns = s.heads * s.D, at = 8, wide = columns + 16;
    std::vector<float> all(static_cast<std::size_t>(s.N * wide), 7.0f);
    for (std::int64_t i = 0; i < s.N * columns; ++i)
      all[static_cast<std::size_t>(i / columns * wide + at + i % columns)] = rows[static_cast<std::size_t>(i)];
    Among out;
    out.all = pool.floats(all, {s.N, wide});
    out.heads = out.all.slice(1, at, columns);
    return out;
  }
  // What is in the heads' columns; the others must be as they were.
  std::vector<float> inside(const Among& a) {
    const auto all = values_of(ctx, a.all);
    const std::int64_t wide = a.all.dim(1), columns = a.heads.dim(1);
    std::vector<float> out;
    for (std::int64_t i = 0; i < a.all.numel(); ++i) {
      const float value = all[static_cast<std::size_t>(i)];
      if (i % wide >= 8 && i % wide < 8 + columns)
        out.push_back(value);
      else
        EXPECT_EQ(value, 7.0f) << "row " << i / wide << ", column " << i % wide;
    }
    return out;
  }
};

// Columns of one head.
template <class T>
std::vector<T> head_of(const std::vector<T>& rows, const Shape& s, std::int64_t h) {
  std::vector<T> out;
  for (std::int64_t n = 0; n < s.N; ++n)
    for (std::int64_t d = 0; d < s.D; ++d) out.push_back(rows[static_cast<std::size_t>((n * s.heads + h) * s.D + d)]);
  return out;
}

TEST_P(HeadMapTest, IsTheFormulaAccumulatesWeightsAndOverwritesActivations) {
  for (const Shape& s : kShapes)
    for (const bool shared : {true, false}) {
      SCOPED_TRACE(::testing::Message() << s.N << " x " << s.heads << " heads of " << s.D << ", shared " << shared);
      const std::int64_t columns = s.heads * s.D, square = s.D * s.D, maps = shared ? 1 : s.heads;
      const auto x = normal(s.N * columns, 1), d_y = normal(s.N * columns, 2), w = normal(maps * square, 3, 0.3f);
      const std::vector<float> nothing(x.size(), NAN);
      const Among tx = among(x, s), td_y = among(d_y, s), y = among(nothing, s), d_x = among(nothing, s);
      const Tensor tw = pool.floats(w, {maps * s.D, s.D}),
                   d_w = pool.floats(std::vector<float>(w.size(), 2.0f), {maps * s.D, s.D});
      head_map_forward(ctx, {tx.heads, tw, y.heads});
      for (int times = 1; times <= 2; ++times)
        run_planned(ctx, [&](Context& on, Arena& scratch) {
          head_map_backward(on, {td_y.heads, tx.heads, tw, d_x.heads, d_w, scratch});
        });
      const auto got_y = inside(y), got_x = inside(d_x);
      std::vector<double> want_w(w.size(), 2.0);
      for (std::int64_t h = 0; h < s.heads; ++h) {
        const std::size_t first = static_cast<std::size_t>(shared ? 0 : h * square);
        const std::vector<double> map(
            w.begin() + static_cast<std::ptrdiff_t>(first),
            w.begin() + static_cast<std::ptrdiff_t>(first + static_cast<std::size_t>(square)));
        const auto x_h = head_of(as<double>(x), s, h), d_y_h = head_of(as<double>(d_y), s, h);
        EXPECT_TRUE(near_in_norm(head_of(got_y, s, h), oracle::linear(x_h, map, {}, s.N, s.D, s.D), 1e-6));
        const auto exact = oracle::linear_backward(d_y_h, x_h, map, {}, s.N, s.D, s.D);
        EXPECT_TRUE(near_in_norm(head_of(got_x, s, h), exact.x, 1e-6));
        for (std::size_t i = 0; i < exact.weight.size(); ++i) want_w[first + i] += 2 * exact.weight[i];
      }
      EXPECT_TRUE(near_in_norm(values_of(ctx, d_w), want_w, 1e-6));
    }
}

TEST_P(HeadMapTest, TheIdentityChangesNothing) {
  const Shape s{9, 3, 8};
  const auto x = normal(s.N * s.heads * s.D, 1);
  std::vector<float> identity(static_cast<std::size_t>(s.D * s.D));
  for (std::int64_t d = 0; d < s.D; ++d) identity[static_cast<std::size_t>(d * s.D + d)] = 1.0f;
  const Among from = among(x, s), to = among(std::vector<float>(x.size(), NAN), s);
  head_map_forward(ctx, {from.heads, pool.floats(identity, {s.D, s.D}), to.heads});
  EXPECT_EQ(inside(to), x);
}

SFA_ON_EVERY_DEVICE(HeadMapTest);

TEST(HeadMapRounding, StoresBf16) {
  Context ctx(Device::cpu);
  ctx.round_bf16 = true;
  Pool pool(ctx);
  const Tensor x = pool.floats(rounded(normal(5 * 8, 1)), {5, 8}), w = pool.floats(rounded(normal(16, 2)), {4, 4}),
               wide = pool.zeros(DType::f32, {5, 12});
  head_map_forward(ctx, {x, w, wide.slice(1, 4, 8)});
  EXPECT_TRUE(all_bf16(values_of(ctx, wide)));
}

TEST(HeadMapChecks, ShapesThatDoNotFitAreNamed) {
  Context ctx(Device::cpu);
  Pool pool(ctx);
  const Tensor x = pool.zeros(DType::f32, {2, 12}), y = pool.zeros(DType::f32, {2, 12});
  EXPECT_THROW(head_map_forward(ctx, {x, pool.zeros(DType::f32, {8, 4}), y}), Error) << "two maps for three heads";
  EXPECT_THROW(head_map_forward(ctx, {x, pool.zeros(DType::f32, {5, 5}), y}), Error) << "12 is no multiple of 5";
}

}  // namespace
}  // namespace sfa::test
