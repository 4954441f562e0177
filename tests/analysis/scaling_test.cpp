// Predicted steps on many ranks: limits that hold whatever the links are, and what was measured on two H200.
#include "analysis/scaling.h"

#include <gtest/gtest.h>

#include "models/model.h"

namespace sfa::test {
namespace {

ScalingInput gpt2_124m() {
  ModelConfig config;
  config.vocab_size = 50257;
  config.resolve();
  ScalingInput in;
  take_bytes(in, make_model(config, Device::cpu, DType::f32)->parameters(), 4, 2);
  // One H200: 847.13 ms for 8 micro-steps and an update of 2.5 ms.
  in.update_s = 2.5e-3;
  in.micro_steps = 8;
  in.micro_step_s = (847.13e-3 - in.update_s) / 8;
  in.bucket_bytes = 25e6;
  in.inside = parse_link("nvlink");
  in.between = parse_link("ib400");
  return in;
}

TEST(Scaling, OneRankWaitsForNobody) {
  for (const std::int64_t zero : {0, 1, 2}) {
    const ScalingPoint p = predict_step(gpt2_124m(), 1, zero);
    EXPECT_EQ(p.exposed_s, 0);
    EXPECT_DOUBLE_EQ(p.efficiency, 1);
  }
}

TEST(Scaling, BytesAreThoseOfTheModel) {
  const ScalingInput in = gpt2_124m();
  EXPECT_NEAR(in.gradient_bytes, 4 * 124.5e6, 4e6);
  EXPECT_NEAR(in.gradient_bytes - in.block_gradient_bytes, 4.0 * (50304 + 1024 + 2) * 768, 4096);
  EXPECT_EQ(in.weight_bytes * 2, in.gradient_bytes);
}

// Measured: 0.75 ms of waiting and 854.6 ms a step, of which 6.7 ms are no waiting for sums: two cards at work draw
// more power and clock lower, which the model does not know.
TEST(Scaling, TwoCardsAsMeasured) {
  const ScalingPoint p = predict_step(gpt2_124m(), 2, 0);
  EXPECT_NEAR(p.exposed_s, 0.75e-3, 0.15e-3);
  EXPECT_NEAR(p.step_s, 854.56e-3, 0.01 * 854.56e-3);
}

TEST(Scaling, SlowerLinksAndMoreRanksWaitLonger) {
  ScalingInput in = gpt2_124m();
  in.micro_step_s = 5e-3;  // too short to hide the blocks' sums behind
  in.update_s = 0;         // which ZeRO shares out
  for (const std::int64_t zero : {0, 1, 2}) {
    double before = 0;
    for (const int ranks : {2, 4, 8, 64, 512}) {
      const ScalingPoint p = predict_step(in, ranks, zero);
      EXPECT_GT(p.exposed_s, before) << ranks;
      EXPECT_LT(p.efficiency, 1);
      before = p.exposed_s;
    }
  }
  EXPECT_GT(predict_step(in, 64, 2).exposed_s, predict_step(in, 64, 1).exposed_s);
  in.between = parse_link("10");
  EXPECT_GT(predict_step(in, 64, 0).step_s, predict_step(gpt2_124m(), 64, 0).exposed_s);
  EXPECT_THROW(parse_link("string"), Error);
  EXPECT_THROW(parse_link("-3"), Error);
}

// Ranks that share sequences: each has a part of the work, waits for what its ring carries beyond that, and sfa's keys
// are fewer bytes.
TEST(Scaling, SharedSequences) {
  ModelConfig model;
  model.vocab_size = 50257;
  model.max_position_embeddings = 32768;
  Config config;
  config.model = model;
  config.data.seq_len = 32768;
  config.data.micro_batch_size = 1;
  double waits[2] = {};
  for (const bool sparse : {false, true}) {
    config.model.attention.type = sparse ? "sfa" : "dense";
    config.model.k = sparse ? 8 : 0;
    config.model.resolve();
    const auto made = make_model(config.model, Device::cpu, DType::f32);
    ScalingInput in = gpt2_124m();
    in.micro_step_s = 0.4;
    config.dist.context_parallel = 4;
    in.ring = ring_of(config, *made, in.micro_step_s);
    EXPECT_GT(in.ring.attention_s, 0.5 * in.micro_step_s);
    EXPECT_LT(in.ring.attention_s, in.micro_step_s);
    const ScalingPoint fast = predict_step(in, 4, 0);
    EXPECT_GT(fast.efficiency, 0.9);
    EXPECT_LT(fast.step_s, 8 * in.micro_step_s / 4 * 1.1);
    in.inside = parse_link("1");
    const ScalingPoint slow = predict_step(in, 4, 0);
    EXPECT_GT(slow.exposed_s, 4 * fast.exposed_s);
    waits[sparse ? 1 : 0] = slow.exposed_s;
  }
  EXPECT_LT(waits[1], 0.8 * waits[0]);
}

}  // namespace
}  // namespace sfa::test
