#include "ops/qk_norm_rope/qk_norm_rope.h"

#include "gpu/twins.h"

namespace sfa::test {
namespace {

struct Shape {
  std::int64_t B, T, H, G, D, Dv;
  double theta = 1e6;
  std::int64_t first_position = 0;
};
// Widths that take vectors and widths that don't, heads that don't fill a warp, long contexts.
const Shape kShapes[] = {{1, 1, 1, 1, 2, 2},
                         {2, 37, 16, 8, 128, 128},
                         {3, 50, 12, 12, 64, 64},
                         {1, 200, 7, 7, 64, 40},
                         {2, 33, 6, 2, 256, 128},
                         {1, 300, 8, 2, 96, 64, 1e4},
                         {2, 19, 5, 1, 30, 6, 1e4, 5},
                         {1, 64, 4, 2, 32, 32},
                         {1, 77, 3, 1, 16, 0, 1e4, 1000},
                         {1, 9, 2, 2, 176, 88},
                         {1, 50, 1, 1, 70, 3, 1e6, 131000},
                         {2, 600, 32, 8, 128, 128}};

std::string name_of(const Shape& s) {
  return fmt::format("B {} T {} H {} G {} D {} Dv {} first {}", s.B, s.T, s.H, s.G, s.D, s.Dv, s.first_position);
}

class QkNormRopeGpu : public GpuTest {
 protected:
  struct Case {
    Shape s;
    Twin x, wq, wk, y, rstd, d_y, d_x, d_wq, d_wk;
  };
  Case make_case(const Shape& s, DType grad_type) {
    const std::int64_t row = (s.H + s.G) * s.D + s.G * s.Dv;
    return {.s = s,
            .x = random({s.B, s.T, row}, 2.0f),
            .wq = random({s.D}),
            .wk = random({s.D}),
            .y = output({s.B, s.T, row}),
            .rstd = output({s.B * s.T, s.H + s.G}, DType::f32),
            .d_y = random({s.B, s.T, row}),
            .d_x = output({s.B, s.T, row}),
            .d_wq = random({s.D}, 1.0f, grad_type),
            .d_wk = random({s.D}, 1.0f, grad_type)};
  }
  static void forward(Context& ctx, const Case& c, Owned Twin::*side) {
    qk_norm_rope_forward(ctx, {.x = (c.x.*side).t,
                               .H = c.s.H,
                               .G = c.s.G,
                               .D = c.s.D,
                               .q_weight = (c.wq.*side).t,
                               .k_weight = (c.wk.*side).t,
                               .theta = c.s.theta,
                               .first_position = c.s.first_position,
                               .y = (c.y.*side).t,
                               .rstd = (c.rstd.*side).t});
  }
  static void backward(Context& ctx, const Case& c, Owned Twin::*side, const Tensor& d_x, Arena& scratch) {
    qk_norm_rope_backward(ctx, {.d_y = (c.d_y.*side).t,
                                .x = (c.x.*side).t,
                                .H = c.s.H,
                                .G = c.s.G,
                                .D = c.s.D,
                                .q_weight = (c.wq.*side).t,
                                .k_weight = (c.wk.*side).t,
                                .theta = c.s.theta,
                                .rstd = (c.rstd.*side).t,
                                .d_x = d_x,
                                .d_q_weight = (c.d_wq.*side).t,
                                .d_k_weight = (c.d_wk.*side).t,
                                .scratch = scratch,
                                .first_position = c.s.first_position});
  }
};

TEST_F(QkNormRopeGpu, MatchesCpu) {
  for (DType type : kFloatTypes)
    for (DType grad_type : kFloatTypes)
      for (const Shape& s : kShapes) {
        use(type);
        SCOPED_TRACE(fmt::format("{} grad {} {}", name_of(type), name_of(grad_type), name_of(s)));
        const Case c = make_case(s, grad_type);
        const auto run = [&](Context& ctx, Arena& scratch, Owned Twin::*side) {
          if (!ctx.planning) forward(ctx, c, side);
          backward(ctx, c, side, (c.d_x.*side).t, scratch);
          backward(ctx, c, side, (c.d_y.*side).t, scratch);  // in place, and the weights' gradients once more
        };
        on_cpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::cpu); });
        on_gpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::gpu); });
        const double tolerance = type == DType::f32 ? f32_tolerance(s.D) : bf16_tolerance();
        const std::int64_t terms = s.B * s.T * s.H + s.D;
        const double grad_tolerance = grad_type == DType::f32 ? 2 * f32_tolerance(terms) : bf16_tolerance(2);
        EXPECT_LE(error(c.y), tolerance);
        EXPECT_LE(error(c.rstd), f32_tolerance(s.D));
        EXPECT_LE(error(c.d_x), 2 * tolerance);
        EXPECT_TRUE(gpu_bytes(c.d_x) == gpu_bytes(c.d_y)) << "in place";
        EXPECT_LE(error(c.d_wq), grad_tolerance);
        EXPECT_LE(error(c.d_wk), grad_tolerance);
      }
}

TEST_F(QkNormRopeGpu, InPlaceAndWithoutValueHeadsAndTokenByTokenTheSameBits) {
  for (DType type : kFloatTypes)
    for (const Shape& s : kShapes) {
      use(type);
      SCOPED_TRACE(fmt::format("{} {}", name_of(type), name_of(s)));
      const Case c = make_case(s, DType::f32);
      forward(*gpu_, c, &Twin::gpu);
      const std::int64_t qk = (s.H + s.G) * s.D;
      const Twin narrow = output({s.B, s.T, qk});
      QkNormRope args{.x = c.x.gpu.t,
                      .H = s.H,
                      .G = s.G,
                      .D = s.D,
                      .q_weight = c.wq.gpu.t,
                      .k_weight = c.wk.gpu.t,
                      .theta = s.theta,
                      .first_position = s.first_position,
                      .y = narrow.gpu.t,
                      .rstd = {}};
      qk_norm_rope_forward(*gpu_, args);
      EXPECT_EQ(values_of(*gpu_, narrow.gpu.t), values_of(*gpu_, c.y.gpu.t.slice(2, 0, qk)));
      for (std::int64_t t = 0; s.B == 1 && t < std::min<std::int64_t>(s.T, 20); ++t) {
        QkNormRope one = args;
        one.x = c.x.gpu.t.slice(1, t, 1);
        one.y = narrow.gpu.t.slice(1, t, 1);
        one.first_position += t;
        qk_norm_rope_forward(*gpu_, one);
      }
      EXPECT_EQ(values_of(*gpu_, narrow.gpu.t), values_of(*gpu_, c.y.gpu.t.slice(2, 0, qk)));
      args.y = args.x;
      qk_norm_rope_forward(*gpu_, args);
      EXPECT_TRUE(gpu_bytes(c.x) == gpu_bytes(c.y));
    }
}

TEST_F(QkNormRopeGpu, TwoRunsGiveTheSameBits) {
  std::vector<std::byte> first;
  for (int run = 0; run < 2; ++run) {
    use(DType::bf16);
    const Case c = make_case({2, 3000, 16, 8, 128, 128}, DType::f32);
    on_gpu([&](Context& ctx, Arena& scratch) {
      if (!ctx.planning) forward(ctx, c, &Twin::gpu);
      backward(ctx, c, &Twin::gpu, c.d_x.gpu.t, scratch);
    });
    std::vector<std::byte> all = gpu_bytes(c.d_wq);
    for (const Twin* t : {&c.d_wk, &c.d_x, &c.y})
      for (std::byte byte : gpu_bytes(*t)) all.push_back(byte);
    if (run == 0)
      first = all;
    else
      EXPECT_TRUE(first == all);
  }
}

}  // namespace
}  // namespace sfa::test
