// Counting by formula: the paper's printed tables, and small cases by hand.
#include "analysis/operation_count.h"

#include <gtest/gtest.h>

#include <array>

namespace sfa::test {
namespace {

constexpr std::array<std::int64_t, 4> kLengths{8192, 16384, 32768, 65536};

AttentionCount heads(const char* type, int k, std::int64_t d, double count) {
  AttentionCount c;
  c.config.type = type;
  c.config.k_q = c.config.k_k = k;
  c.dims = {.H = 1, .G = 1, .Dqk = d, .Dv = d};
  c.batch = count;
  return c;
}

// Table 6 of arXiv 2603.22300: TFLOPs of 64 heads, and 10^6 integer operations of one.
struct PrintedRow {
  int k;  // 0 = dense
  std::int64_t d;
  std::array<double, 4> tflops, inops;
};
const std::array<PrintedRow, 8> kTable6{{{0, 128, {2.23, 8.92, 35.67, 142.67}, {}},
                                         {32, 128, {1.20, 4.79, 19.17, 76.70}, {28.31, 58.72, 121.63, 251.67}},
                                         {16, 128, {1.15, 4.59, 18.35, 73.40}, {18.87, 39.85, 83.89, 176.17}},
                                         {8, 128, {1.13, 4.54, 18.14, 72.57}, {13.63, 29.36, 62.91, 134.22}},
                                         {0, 64, {1.12, 4.48, 17.94, 71.75}, {}},
                                         {16, 64, {0.61, 2.42, 9.69, 38.76}, {15.16, 29.36, 60.82, 125.83}},
                                         {8, 64, {0.58, 2.32, 9.27, 37.11}, {9.44, 19.92, 41.94, 88.08}},
                                         {4, 64, {0.57, 2.30, 9.17, 36.70}, {6.82, 14.68, 31.46, 67.11}}}};

TEST(OperationCount, EveryCellOfThePapersTable6) {
  for (const PrintedRow& row : kTable6)
    for (std::size_t i = 0; i < kLengths.size(); ++i) {
      const AttentionOperations a =
          count_attention(heads(row.k == 0 ? "dense" : "sfa", row.k, row.d, 64), kLengths[i], Convention::paper);
      // Printed to two digits: 0.01 beside the rounding of the print.
      EXPECT_NEAR(a.flops * 1e-12, row.tflops[i], 0.01) << row.k << "/" << row.d << " at " << kLengths[i];
      EXPECT_EQ(a.integer_ops == 0, row.k == 0);
      // The printed 15.16 breaks the column's pattern; the formula gives 14.16.
      const double inops = row.k == 16 && row.d == 64 && i == 0 ? 14.16 : row.inops[i];
      if (row.k > 0) {
        EXPECT_NEAR(a.integer_ops * 1e-6, inops, 0.015) << row.k << "/" << row.d << " at " << kLengths[i];
      }
    }
}

TEST(OperationCount, CacheBytesOfFigure1AndAppendixJ) {
  const auto ratio = [](int k, std::int64_t d, double index_bytes, double pointer_bytes = 0) {
    const AttentionCount c = heads("sfa", k, d, 1);
    return kv_ratio(c.config, c.dims, {.index_bytes = index_bytes, .pointer_bytes = pointer_bytes});
  };
  // Figure 1(b): 0.875, 0.688, 0.59 at k = 32, 16, 8: 64 features with 8-bit indices, or 128 with 32-bit ones.
  for (const auto& [k, bar] : {std::pair{32, 0.875}, std::pair{16, 0.688}, std::pair{8, 0.59}}) {
    EXPECT_NEAR(ratio(k, 64, 1), bar, 0.005);
    EXPECT_NEAR(ratio(k, 128, 4), bar, 0.005);
  }
  EXPECT_NEAR(ratio(8, 128, 1), 0.547, 0.0005);
  EXPECT_NEAR(ratio(16, 128, 1, 4), 0.602, 0.0005);
  EXPECT_NEAR(ratio(4, 64, 2), 0.563, 0.0005);
  // Appendix J's worked examples are of K alone: 2 d / (3 k + 4).
  for (const auto& [k, d, gain] : {std::tuple{8, 64, 4.57}, std::tuple{8, 128, 9.14}, std::tuple{16, 128, 4.92}}) {
    AttentionCount c = heads("sfa", k, d, 1);
    c.dims.Dv = 0;
    EXPECT_NEAR(1 / kv_ratio(c.config, c.dims, {.index_bytes = 1, .pointer_bytes = 4}), gain, 0.005);
  }
  const AttentionCount dense = heads("dense", 0, 128, 1);
  EXPECT_EQ(kv_ratio(dense.config, dense.dims, {}), 1);
  EXPECT_EQ(kv_bytes(dense.config, dense.dims, {}), 512);
}

TEST(OperationCount, OurCacheHasTheSmallerOfNumbersAndBits) {
  const auto bytes = [](int k, std::int64_t d, Convention convention, const char* kv_cache) {
    AttentionCount c = heads("sfa", k, d, 1);
    c.config.kv_cache = kv_cache;
    return kv_bytes(c.config, c.dims, key_format(convention, 2));
  };
  for (const Convention ours : {Convention::causal, Convention::executed}) {
    EXPECT_EQ(bytes(8, 64, ours, "full"), 8 * 3 + 128) << "eight bytes either way";
    EXPECT_EQ(bytes(28, 64, ours, "full"), 28 * 2 + 8 + 128);
    EXPECT_EQ(bytes(28, 64, ours, "int8"), 28 * 2 + 8 + 66);
    EXPECT_EQ(bytes(38, 64, ours, "int8"), 38 * 2 + 8 + 66);
    EXPECT_EQ(bytes(13, 96, ours, "full"), 13 * 2 + 12 + 192);
    EXPECT_EQ(bytes(16, 128, ours, "full"), 16 * 3 + 256);
    EXPECT_EQ(bytes(17, 128, ours, "full"), 17 * 2 + 16 + 256);
  }
  EXPECT_EQ(bytes(28, 64, Convention::paper, "full"), 28 * 3 + 128) << "8-bit indices";
}

TEST(OperationCount, CausalCountsWhatIsSeen) {
  AttentionCount c = heads("sfa", 8, 64, 3);
  // 4 queries see 1 + 2 + 3 + 4 keys; a pair costs 8 * 8 / 64 + 64 multiply-adds.
  EXPECT_DOUBLE_EQ(count_attention(c, 4, Convention::causal).flops, 3 * 10 * 2 * (1.0 + 64));
  c.overlap = 2.5;
  EXPECT_DOUBLE_EQ(count_attention(c, 4, Convention::causal).flops, 3 * 10 * 2 * (2.5 + 64));
  c.config.window = 2;  // 1 + 2 + 2 + 2
  EXPECT_DOUBLE_EQ(count_attention(c, 4, Convention::causal).flops, 3 * 7 * 2 * (2.5 + 64));
  // The paper's count does not know a measured overlap, and sees every pair.
  EXPECT_DOUBLE_EQ(count_attention(heads("sfa", 8, 64, 3), 4, Convention::paper).flops,
                   3 * 16 * (2.0 + 128 + 2 + 3 + 1.0 / 64));
}

TEST(OperationCount, ExecutedCountsZerosThatAreMultiplied) {
  const std::int64_t N = 4096;
  const auto executed = [&](AttentionCount c) { return count_attention(c, N, Convention::executed); };
  const AttentionCount dense = heads("dense", 0, 128, 4), topk = heads("sfa", 16, 128, 4);
  const double pairs = 4.0 * N * (N + 1) / 2;
  EXPECT_EQ(executed(dense).flops, executed(topk).flops) << "zero-filled rows on tensor cores";
  EXPECT_EQ(executed(dense).integer_ops, 0);
  EXPECT_EQ(executed(topk).integer_ops, 4.0 * N * 128 * (11 + 11));
  AttentionCount other = topk;
  other.config.selection = "topk_2of4";
  EXPECT_DOUBLE_EQ(executed(dense).flops - executed(other).flops, pairs * 128) << "half of QK^T";
  other.config.impl = "flash_sm80";
  EXPECT_DOUBLE_EQ(executed(dense).flops - executed(other).flops, pairs * 128) << "half of QK^T";
  other = topk;
  other.device = Device::cpu;
  EXPECT_DOUBLE_EQ(executed(dense).flops - executed(other).flops, pairs * 2 * (128 - 16));
  other = topk;
  other.config.impl = "posting_list";
  other.overlap = 3;
  EXPECT_DOUBLE_EQ(executed(dense).flops - executed(other).flops, pairs * 2 * (128 - 3));
}

}  // namespace
}  // namespace sfa::test
