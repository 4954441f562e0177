// Rows in 8 bits: a card stores what the CPU does, and what a cache gives back is what int8_round makes of a row.
#include "ops/int8_rows/int8_rows.h"

#include "gpu/twins.h"

namespace sfa::test {
namespace {

class Int8RowsGpu : public GpuTest {};

TEST_F(Int8RowsGpu, RoundsAsTheCpu) {
  for (const DType type : kFloatTypes)
    for (const std::int64_t D : {1, 16, 64, 80, 128, 200, 256}) {
      SCOPED_TRACE(fmt::format("{} D={}", name_of(type), D));
      use(type);
      const std::int64_t B = 2, T = 37, H = 3, width = H * D + 24;
      const Twin x = random({B, T, width});
      int8_round(cpu_, x.cpu.t.slice(2, 16, H * D).split_last(H));
      int8_round(*gpu_, x.gpu.t.slice(2, 16, H * D).split_last(H));
      EXPECT_EQ(values_of(cpu_, x.cpu.t), values_of(*gpu_, x.gpu.t));
    }
}

TEST_F(Int8RowsGpu, ACacheGivesBackRoundedRows) {
  use(DType::bf16);
  for (const std::int64_t D : {16, 64, 80, 256}) {
    SCOPED_TRACE(D);
    const std::int64_t B = 2, T = 37, H = 3, capacity = 64, at = 5, row = (D + 15) / 16 * 16;
    const Twin x = random({B, T, H, D}), back = output({B, T, H, D});
    // Tokens of one head follow each other, and what is not written stays.
    const Twin values = integers({B, H, capacity, row},
                                 std::vector<std::uint8_t>(static_cast<std::size_t>(B * H * capacity * row), 77));
    const Twin scales = output({B, H, capacity});
    Int8Rows cache{values.gpu.t.slice(3, 0, D), scales.gpu.t};
    for (Tensor* t : {&cache.values, &cache.scales}) {
      std::swap(t->shape[1], t->shape[2]);
      std::swap(t->stride[1], t->stride[2]);
    }
    int8_append(*gpu_, x.gpu.t, cache, at);
    int8_expand(*gpu_, {cache.values.slice(1, at, T), cache.scales.slice(1, at, T)}, back.gpu.t);
    int8_round(*gpu_, x.gpu.t);
    EXPECT_EQ(gpu_bytes(x), gpu_bytes(back));
    const auto bytes = gpu_bytes(values);
    for (std::int64_t n = 0; n < B * H * capacity; ++n)
      for (std::int64_t c = 0; c < row; ++c) {
        if (n % capacity >= at && n % capacity < at + T && c < D) continue;
        ASSERT_EQ(bytes[static_cast<std::size_t>(n * row + c)], std::byte{77}) << n << " " << c;
      }
  }
}

}  // namespace
}  // namespace sfa::test
