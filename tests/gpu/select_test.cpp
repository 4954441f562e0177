#include "ops/select/select.h"

#include "gpu/twins.h"

namespace sfa::test {
namespace {

class SelectGpu : public GpuTest {
 protected:
  // Every third row has few distinct magnitudes (ties), every fifth holds NaN, infinities and signed zeros.
  std::vector<float> rows(std::int64_t count, std::int64_t D) {
    std::vector<float> v = normal(count * D, 11);
    for (std::int64_t r = 0; r < count; ++r)
      for (std::int64_t d = 0; d < D; ++d) {
        float& x = v[static_cast<std::size_t>(r * D + d)];
        if (r % 3 == 0) x = std::round(x);
        if (r % 5 == 0 && d % 7 == 1) x = std::numeric_limits<float>::quiet_NaN();
        if (r % 5 == 0 && d % 7 == 4) x = d % 2 == 0 ? -std::numeric_limits<float>::infinity() : -0.0f;
      }
    return v;
  }
  // Bitwise, so that NaN equals NaN.
  bool same(const Twin& twin) {
    const std::vector<float> a = values_of(*gpu_, twin.gpu.t), b = values_of(cpu_, twin.cpu.t);
    for (std::size_t i = 0; i < a.size(); ++i)
      if (!(a[i] == b[i] && std::signbit(a[i]) == std::signbit(b[i])) && !(std::isnan(a[i]) && std::isnan(b[i])))
        return false;
    return a.size() == b.size();
  }
};

TEST_F(SelectGpu, WholePairsExactlyAsOnTheCpu) {
  constexpr std::int64_t B = 2, T = 37, H = 3;
  for (DType type : kFloatTypes)
    for (std::int64_t D : {2, 8, 18, 32, 64, 80, 100, 128, 200, 256})
      for (std::int64_t k : {std::int64_t{2}, std::int64_t{8}, std::int64_t{16}, D / 4 * 2, D})
        for (bool packed : {false, true}) {
          if (k < 2 || k > D) continue;
          use(type);
          SCOPED_TRACE(fmt::format("{} D={} k={} packed={}", name_of(type), D, k, packed));
          const std::int64_t width = packed ? H * D + 24 : H * D;
          const Twin x = filled({B, T, width}, rows(B * T, width), type), dense = output({B, T, H, D});
          const Twin values = output({B, T, H, k});
          const Twin indices =
              integers({B, T, H, k}, std::vector<std::uint8_t>(static_cast<std::size_t>(B * T * H * k), 77));
          const auto run = [&](Context& ctx, Owned Twin::*s) {
            const Tensor in = (x.*s).t.slice(2, packed ? 16 : 0, H * D).split_last(H);
            select_topk(ctx, {in, k, false, (values.*s).t, (indices.*s).t, packed ? in : (dense.*s).t, true});
          };
          run(cpu_, &Twin::cpu);
          run(*gpu_, &Twin::gpu);
          EXPECT_TRUE(same(values));
          EXPECT_TRUE(bytes_of(cpu_, indices.cpu.t) == gpu_bytes(indices));
          EXPECT_TRUE(same(packed ? x : dense));
        }
}

TEST_F(SelectGpu, ExactlyAsOnTheCpu) {
  constexpr std::int64_t B = 2, T = 37, H = 3;
  for (DType type : kFloatTypes)
    for (std::int64_t D : {4, 8, 17, 32, 64, 80, 100, 128, 200, 256})
      for (std::int64_t k : {std::int64_t{1}, std::int64_t{2}, std::int64_t{8}, D / 2, D})
        for (bool two_of_four : {false, true})
          for (bool packed : {false, true}) {
            if (k < 1 || k > D || k > 128 || (two_of_four && (D % 4 != 0 || k > D / 2))) continue;
            use(type);
            SCOPED_TRACE(fmt::format("{} D={} k={} 2:4={} packed={}", name_of(type), D, k, two_of_four, packed));
            // packed: the rows are a column range of wider rows, selected in place
            const std::int64_t width = packed ? H * D + 24 : H * D;
            const Twin x = filled({B, T, width}, rows(B * T, width), type), dense = output({B, T, H, D});
            const Twin values = output({B, T, H, k}), expanded = output({B, T, H, D}),
                       gradient = filled({B, T, width}, rows(B * T, width), type);
            const Twin indices =
                integers({B, T, H, k}, std::vector<std::uint8_t>(static_cast<std::size_t>(B * T * H * k), 77));
            const auto run = [&](Context& ctx, Owned Twin::*s) {
              const Tensor in = (x.*s).t.slice(2, packed ? 16 : 0, H * D).split_last(H);
              select_topk(ctx, {in, k, two_of_four, (values.*s).t, (indices.*s).t, packed ? in : (dense.*s).t});
              select_mask_gradient(ctx, (gradient.*s).t.slice(2, packed ? 16 : 0, H * D).split_last(H), (indices.*s).t);
              select_expand(ctx, (values.*s).t, (indices.*s).t, (expanded.*s).t);
            };
            run(cpu_, &Twin::cpu);
            run(*gpu_, &Twin::gpu);
            EXPECT_TRUE(same(values));
            EXPECT_TRUE(bytes_of(cpu_, indices.cpu.t) == gpu_bytes(indices));
            EXPECT_TRUE(same(packed ? x : dense));
            EXPECT_TRUE(same(gradient));
            EXPECT_TRUE(same(expanded));
          }
}

}  // namespace
}  // namespace sfa::test
