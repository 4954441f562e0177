// Sums that stay on the device, against the sum in double.
#include "ops/reduce/reduce.h"

#include <gtest/gtest.h>

#include <bit>

#include "support/compare.h"
#include "support/devices.h"

namespace sfa::test {
namespace {

class SumAdd : public DeviceTest {
 protected:
  double read(const Tensor& total) { return std::bit_cast<double>(elements<std::int64_t>(ctx, total).at(0)); }
};

TEST_P(SumAdd, AddsInDouble) {
  for (const std::int64_t n : {1, 31, 1000, 4097, 70000}) {
    // A large head and a small rest: a sum in float would lose the rest.
    auto x = normal(n, 1);
    x[0] = 3e7f;
    double want = 0.5;
    for (float v : x) want += v;
    const Tensor values = pool.floats(x, {n}),
                 total = pool.integers(std::vector<std::int64_t>{std::bit_cast<std::int64_t>(0.5)}, {1});
    sum_add(ctx, values, total);
    EXPECT_NEAR(read(total), want, 1e-12 * static_cast<double>(n) * 3e7);
    sum_add(ctx, values, total);
    EXPECT_NEAR(read(total), 2 * want - 0.5, 1e-12 * static_cast<double>(n) * 6e7);
    const Tensor again = pool.integers(std::vector<std::int64_t>{std::bit_cast<std::int64_t>(0.5)}, {1});
    sum_add(ctx, values, again);
    sum_add(ctx, values, again);
    EXPECT_EQ(read(again), read(total)) << "the order is fixed";
  }
}

SFA_ON_EVERY_DEVICE(SumAdd);

}  // namespace
}  // namespace sfa::test
