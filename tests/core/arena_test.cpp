// Planned memory and contexts: counting and binding take the same places, and overrunning a plan is caught.
#include "core/arena.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>

#include "support/devices.h"

namespace sfa::test {
namespace {

TEST(Arena, CountsThenBindsToTheSamePlaces) {
  Arena arena("test", Device::cpu);
  const auto plan = [&](Tensor& a, Tensor& b) {
    a = arena.take(DType::f32, {3, 5});
    b = arena.take(DType::u8, {7});
  };
  Tensor a, b;
  plan(a, b);
  EXPECT_EQ(a.data, nullptr);
  EXPECT_FALSE(a.empty());
  EXPECT_EQ(arena.peak(), 512u);
  arena.bind();
  EXPECT_TRUE(arena.bound());
  EXPECT_EQ(arena.used(), 0u);
  plan(a, b);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(a.data) % 256, 0u);
  EXPECT_EQ(static_cast<std::byte*>(b.data) - static_cast<std::byte*>(a.data), 256);
  for (int i = 0; i < 15; ++i) EXPECT_EQ(a.as<float>()[i], 0.0f);
  EXPECT_THROW((void)arena.take(DType::f32, {1}), Error) << "more than was planned";
  EXPECT_THROW(arena.bind(), Error);
}

TEST(Arena, ScopesGiveBackAndThePeakRemembers) {
  Arena arena("scratch", Device::cpu);
  {
    const ArenaScope outer(arena);
    (void)arena.take(DType::f32, {64});
    for (int i = 0; i < 3; ++i) {
      const ArenaScope inner(arena);
      (void)arena.take(DType::f32, {128});
    }
    EXPECT_EQ(arena.used(), 256u);
  }
  EXPECT_EQ(arena.used(), 0u);
  EXPECT_EQ(arena.peak(), 256u + 512u);
  arena.bind();
  EXPECT_NO_THROW((void)arena.take(DType::u8, {768}));
}

TEST(Arena, NothingTakenStillBinds) {
  Arena arena("empty", Device::cpu);
  arena.bind();
  EXPECT_TRUE(arena.bound());
  EXPECT_NO_THROW((void)arena.take(DType::f32, {0}));
}

TEST(Buffer, MovesAndRefusesTheImpossible) {
  Buffer a(Device::cpu, 100, "a test");
  EXPECT_EQ(a.bytes(), 256u);
  void* memory = a.data();
  Buffer b = std::move(a);
  EXPECT_EQ(b.data(), memory);
  EXPECT_EQ(a.data(), nullptr);  // NOLINT: the moved-from state is the point
  Buffer c;
  c = std::move(b);
  EXPECT_EQ(c.data(), memory);
  try {
    const Buffer huge(Device::cpu, std::size_t{1} << 60, "the impossible");
    FAIL() << "2^60 bytes were found";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("the impossible"), std::string::npos) << e.what();
  }
}

class ContextTest : public DeviceTest {};

TEST_P(ContextTest, CopiesAndZeroes) {
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  const Tensor t = pool.floats(values, {2, 3}), u = pool.poisoned(DType::f32, {2, 3});
  ctx.copy(u.data, u.device, t.data, t.device, static_cast<std::size_t>(t.bytes()));
  EXPECT_EQ(values_of(ctx, u), values);
  ctx.zero(u);
  EXPECT_EQ(values_of(ctx, u), std::vector<float>(6, 0.0f));
  EXPECT_THROW(ctx.zero(t.slice(1, 0, 2)), Error) << "a strided tensor";
  EXPECT_FALSE(ctx.device_name().empty());
}

TEST_P(ContextTest, CopiesRowsBetweenStridedPlaces) {
  const std::int64_t B = 2, T = 3, heads = 2, D = 5;
  const Tensor packed = pool.zeros(DType::f32, {B, T, 20});
  std::vector<float> numbers;
  for (int i = 0; i < B * T * 20; ++i) numbers.push_back(static_cast<float>(i));
  ctx.copy(packed.data, packed.device, numbers.data(), Device::cpu, numbers.size() * sizeof(float));
  const Tensor from = packed.slice(2, 4, heads * D).split_last(heads);
  const Tensor cache = pool.floats(std::vector<float>(2 * 7 * 10, -1.0f), {B, 7, heads, D}),
               whole = pool.poisoned(DType::f32, {B, T, heads, D});
  ctx.copy_rows(cache.slice(1, 2, T), from);
  ctx.copy_rows(whole, from);
  EXPECT_EQ(values_of(ctx, cache.slice(1, 2, T)), values_of(ctx, from));
  EXPECT_EQ(values_of(ctx, whole), values_of(ctx, from));
  for (std::int64_t t : {0, 1, 5, 6})
    EXPECT_EQ(values_of(ctx, cache.slice(1, t, 1)), std::vector<float>(static_cast<std::size_t>(B * heads * D), -1.0f))
        << t;
  EXPECT_THROW(ctx.copy_rows(cache.slice(1, 0, T + 1), from), Error);
}

TEST_P(ContextTest, PlanningTouchesNothing) {
  const std::vector<float> values{1, 2, 3};
  const Tensor t = pool.floats(values, {3});
  const Context counting = Context::for_planning(GetParam());
  counting.zero(t);
  counting.copy(t.data, t.device, nullptr, t.device, 12);
  EXPECT_EQ(values_of(ctx, t), values);
}

SFA_ON_EVERY_DEVICE(ContextTest);

TEST(Context, PlanningNeedsNoDevice) {
  EXPECT_TRUE(Context::for_planning(Device::cuda).planning);
  std::string why;
  if (!cuda_available(&why)) {
    EXPECT_FALSE(why.empty());
    EXPECT_THROW(Context{Device::cuda}, Error);
  }
}

TEST(Context, RoundsWholeTensorsOnlyWhenAsked) {
  Context ctx(Device::cpu);
  Pool pool(ctx);
  const Tensor t = pool.floats({1.001f, -2.003f}, {2});
  round_output(ctx, t);
  EXPECT_EQ(values_of(ctx, t), (std::vector<float>{1.001f, -2.003f}));
  ctx.round_bf16 = true;
  round_output(ctx, t);
  EXPECT_EQ(values_of(ctx, t), (std::vector<float>{round_to_bf16(1.001f), round_to_bf16(-2.003f)}));
}

}  // namespace
}  // namespace sfa::test
