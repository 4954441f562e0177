// Token and position embedding: forward is a gather and one addition, so results are exact; backward adds rows.
#include "ops/embedding/embedding.h"

#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/devices.h"

namespace sfa::test {
namespace {

constexpr std::int64_t B = 3, T = 5, V = 11, P = 9;

std::vector<std::int32_t> some_tokens() {
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < B * T; ++i) tokens.push_back((i * 7 + i / 4) % 6);  // repeats, and ids that never occur
  tokens[3] = V - 1;
  return tokens;
}

class Embedding : public DeviceTest {};

TEST_P(Embedding, ForwardGathersAndAdds) {
  for (const std::int64_t C : {1, 8, 33, 100}) {
    const auto tokens = some_tokens();
    const auto wte = normal(V * C, 1), wpe = normal(P * C, 2);
    for (const std::int64_t first : {0, 4}) {
      for (const bool positions : {true, false}) {
        const Tensor out = pool.poisoned(DType::f32, {B, T, C});
        embedding_forward(ctx, pool.integers(tokens, {B, T}), pool.floats(wte, {V, C}),
                          positions ? pool.floats(wpe, {P, C}) : Tensor{}, first, out);
        std::vector<float> want;
        for (std::int64_t n = 0; n < B * T; ++n)
          for (std::int64_t c = 0; c < C; ++c)
            want.push_back(wte[static_cast<std::size_t>(tokens[static_cast<std::size_t>(n)] * C + c)] +
                           (positions ? wpe[static_cast<std::size_t>((first + n % T) * C + c)] : 0.0f));
        EXPECT_EQ(values_of(ctx, out), want);
      }
    }
  }
}

TEST_P(Embedding, BackwardAccumulatesRows) {
  for (const std::int64_t C : {1, 8, 33, 100}) {
    const auto tokens = some_tokens();
    const auto d_out = normal(B * T * C, 3);
    std::vector<double> d_wte(static_cast<std::size_t>(V * C)), d_wpe(static_cast<std::size_t>(P * C));
    for (std::int64_t n = 0; n < B * T; ++n)
      for (std::int64_t c = 0; c < C; ++c) {
        const double g = d_out[static_cast<std::size_t>(n * C + c)];
        d_wte[static_cast<std::size_t>(tokens[static_cast<std::size_t>(n)] * C + c)] += g;
        d_wpe[static_cast<std::size_t>(n % T * C + c)] += g;
      }
    const Tensor te = pool.floats(std::vector<float>(d_wte.size(), 4.0f), {V, C});
    const Tensor pe = pool.floats(std::vector<float>(d_wpe.size(), -1.0f), {P, C});
    const Tensor ids = pool.integers(tokens, {B, T}), g = pool.floats(d_out, {B, T, C});
    for (int times = 1; times <= 2; ++times) {
      run_planned(ctx, [&](Context& on, Arena& scratch) { embedding_backward(on, {ids, g, te, pe, scratch}); });
      EXPECT_TRUE(near_in_norm(values_of(ctx, te), plus(d_wte, 4.0, times), 4 * kUnitF32));
      EXPECT_TRUE(near_in_norm(values_of(ctx, pe), plus(d_wpe, -1.0, times), 4 * kUnitF32));
    }
    const auto rows = values_of(ctx, te);
    for (std::int64_t c = 0; c < C; ++c)
      EXPECT_EQ(rows[static_cast<std::size_t>(9 * C + c)], 4.0f) << "token 9 never occurs";
  }
}

TEST_P(Embedding, BackwardWithoutPositionsAndSameBitsEveryRun) {
  // Every row names the same token: the hardest case for a fixed order.
  const std::int64_t C = 40, rows = 300;
  const auto d_out = normal(rows * C, 3);
  const Tensor ids = pool.integers(std::vector<std::int32_t>(rows, 2), {1, rows}), g = pool.floats(d_out, {1, rows, C});
  std::vector<float> first;
  for (int run = 0; run < 3; ++run) {
    const Tensor te = pool.zeros(DType::f32, {V, C});
    run_planned(ctx, [&](Context& on, Arena& scratch) { embedding_backward(on, {ids, g, te, Tensor{}, scratch}); });
    if (run == 0) first = values_of(ctx, te);
    EXPECT_EQ(values_of(ctx, te), first);
  }
}

TEST_P(Embedding, PositionsBeyondTheModelAreRefused) {
  const Tensor ids = pool.integers(some_tokens(), {B, T}), wte = pool.zeros(DType::f32, {V, 4}),
               wpe = pool.zeros(DType::f32, {P, 4}), out = pool.zeros(DType::f32, {B, T, 4});
  EXPECT_NO_THROW(embedding_forward(ctx, ids, wte, wpe, P - T, out));
  EXPECT_THROW(embedding_forward(ctx, ids, wte, wpe, P - T + 1, out), Error);
}

SFA_ON_EVERY_DEVICE(Embedding);

TEST(EmbeddingRounding, StoresBf16) {
  Context ctx(Device::cpu);
  ctx.round_bf16 = true;
  Pool pool(ctx);
  const std::int64_t C = 16;
  const auto wte = rounded(normal(V * C, 1)), wpe = rounded(normal(P * C, 2));
  const Tensor out = pool.zeros(DType::f32, {B, T, C});
  embedding_forward(ctx, pool.integers(some_tokens(), {B, T}), pool.floats(wte, {V, C}), pool.floats(wpe, {P, C}), 1,
                    out);
  const auto got = values_of(ctx, out);
  EXPECT_TRUE(all_bf16(got));
  EXPECT_EQ(got[static_cast<std::size_t>(3 * C)],
            round_to_bf16(wte[static_cast<std::size_t>((V - 1) * C)] + wpe[static_cast<std::size_t>(4 * C)]));
}

}  // namespace
}  // namespace sfa::test
