// Times by op: nesting, sums, and that a model's step names all of its work.
#include "analysis/op_timer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "analysis/ceilings.h"
#include "ops/linear/linear.h"

namespace sfa::test {
namespace {

// Sleeps, and returns the milliseconds that it took: more than were asked for where the machine is busy.
double wait(int ms) {
  const auto began = std::chrono::steady_clock::now();
  std::this_thread::sleep_for(std::chrono::milliseconds(ms));
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
}

OpWork work(const char* kind) {
  return {.kind = kind, .shape = "", .flops = 3, .bytes = 5};
}

TEST(OpTimer, AnOpsTimeIsItsOwnWithoutThatOfTheOpsInIt) {
  Context ctx(Device::cpu);
  OpTimer timer(ctx);
  double inside = 0, outside = 0;
  for (int i = 0; i < 2; ++i) {
    const OpScope outer(ctx, [] { return work("outer"); });
    outside += wait(4);
    {
      const OpScope inner(ctx, [] { return work("inner"); });
      inside += wait(12);
    }
    outside += wait(1);
  }
  const double whole = timer.collect();
  const std::vector<OpTime> times = timer.times();
  ASSERT_EQ(times.size(), 2u);
  EXPECT_GE(times[0].ms, times[1].ms) << "the longest comes first";
  const bool inner_first = times[0].work.kind == "inner";
  const OpTime &inner = times[inner_first ? 0 : 1], &outer = times[inner_first ? 1 : 0];
  EXPECT_EQ(inner.work.kind, "inner");
  EXPECT_EQ(outer.work.kind, "outer");
  EXPECT_EQ(inner.calls, 2);
  EXPECT_EQ(outer.work.flops, 6);
  EXPECT_EQ(outer.work.bytes, 10);
  // However long the sleeps were: each op has its own, and both together have no more than there was.
  EXPECT_GE(inner.ms, inside);
  EXPECT_GE(outer.ms, outside);
  EXPECT_LE(inner.ms + outer.ms, whole * (1 + 1e-9));
  EXPECT_EQ(timer.collect(), 0) << "nothing new";
}

TEST(OpTimer, SeesNoPlanningAndLeavesTheContextAsItWas) {
  Context ctx(Device::cpu);
  {
    OpTimer timer(ctx);
    EXPECT_EQ(ctx.observer, &timer);
    ctx.planning = true;
    {
      const OpScope scope(ctx, []() -> OpWork { throw Error("described while planning"); });
    }
    ctx.planning = false;
    EXPECT_EQ(timer.collect(), 0);
  }
  EXPECT_EQ(ctx.observer, nullptr);
  {
    const OpScope scope(ctx, []() -> OpWork { throw Error("described though nobody watches"); });
  }
}

TEST(OpTimer, BackwardOfALinearLayerIsThreeOps) {
  Context ctx(Device::cpu);
  Arena arena("test", Device::cpu), scratch("scratch", Device::cpu);
  const auto take = [&] {
    return std::array{arena.take(DType::f32, {6, 8}), arena.take(DType::f32, {6, 4}), arena.take(DType::f32, {8, 4}),
                      arena.take(DType::f32, {6, 4}), arena.take(DType::f32, {8, 4}), arena.take(DType::f32, {8})};
  };
  take();
  arena.bind();
  const auto [d_y, x, weight, d_x, d_weight, d_bias] = take();
  OpTimer timer(ctx);
  linear_backward(ctx, {d_y, x, weight, {}, d_x, d_weight, d_bias, scratch});
  timer.collect();
  double flops = 0;
  std::vector<std::string> kinds;
  for (const OpTime& t : timer.times()) {
    flops += t.work.flops;
    kinds.push_back(t.work.kind);
  }
  std::sort(kinds.begin(), kinds.end());
  EXPECT_EQ(kinds, (std::vector<std::string>{"linear d_bias", "linear d_weight", "linear d_x"}));
  EXPECT_EQ(flops, 2.0 * 2 * 6 * 8 * 4);
}

TEST(Ceilings, AreWhatThisMachineDoes) {
  Context ctx(Device::cpu);
  const Ceilings c = measure_ceilings(ctx, DType::f32, std::size_t{16} << 20);
  EXPECT_GT(c.tflops, 1e-4);
  EXPECT_GT(c.gb_per_sec, 0.1);
  EXPECT_EQ(c.card_tflops, 0);
  EXPECT_EQ(stated_bf16_tflops("NVIDIA H200"), 989.4);
  EXPECT_EQ(stated_bf16_tflops("NVIDIA H100 PCIe"), 756.0);
}

}  // namespace
}  // namespace sfa::test
