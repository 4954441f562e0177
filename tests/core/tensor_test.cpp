// Views: shapes, strides, slices, and what they refuse.
#include "core/tensor.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace sfa {
namespace {

struct Numbered : ::testing::Test {
  std::vector<float> memory = std::vector<float>(2 * 3 * 8);
  Tensor t;
  Numbered() {
    std::iota(memory.begin(), memory.end(), 0.0f);
    t = Tensor(memory.data(), DType::f32, Device::cpu, {2, 3, 8});
  }
};

TEST_F(Numbered, ShapeAndStrides) {
  EXPECT_EQ(t.rank, 3);
  EXPECT_EQ(t.numel(), 48);
  EXPECT_EQ(t.bytes(), 192);
  EXPECT_EQ(t.dim(0), 2);
  EXPECT_EQ(t.dim(-1), 8);
  EXPECT_EQ(t.stride[0], 24);
  EXPECT_EQ(t.stride[1], 8);
  EXPECT_EQ(t.stride[2], 1);
  EXPECT_TRUE(t.contiguous());
  EXPECT_EQ(t.describe(), "[2, 3, 8] f32 cpu");
  EXPECT_TRUE(Tensor{}.empty());
  EXPECT_FALSE(Tensor(nullptr, DType::f32, Device::cpu, {4}).empty()) << "counted only, but given";
}

TEST_F(Numbered, Slices) {
  const Tensor columns = t.slice(2, 3, 2);
  EXPECT_EQ(columns.as<float>()[0], 3.0f);
  EXPECT_EQ(columns.dim(2), 2);
  EXPECT_EQ(columns.stride[1], 8);
  EXPECT_FALSE(columns.contiguous());
  EXPECT_EQ(t.slice(0, 1, 1).as<float>()[0], 24.0f);
  EXPECT_TRUE(t.slice(0, 1, 1).contiguous());
  EXPECT_EQ(t.slice(-1, 7, 1).as<float>()[8], 15.0f);
  EXPECT_EQ(t.slice(1, 3, 0).numel(), 0);
  EXPECT_EQ(Tensor(nullptr, DType::f32, Device::cpu, {4}).slice(0, 2, 1).data, nullptr)
      << "a counted tensor stays without memory";
  EXPECT_THROW((void)t.slice(2, 7, 2), Error);
  EXPECT_THROW((void)t.slice(3, 0, 1), Error);
  EXPECT_THROW((void)t.slice(0, -1, 1), Error);
}

TEST_F(Numbered, SplitLastWorksOnStridedViews) {
  const Tensor heads = t.slice(2, 2, 6).split_last(3);
  EXPECT_EQ(heads.rank, 4);
  EXPECT_EQ(heads.dim(2), 3);
  EXPECT_EQ(heads.dim(3), 2);
  EXPECT_EQ(heads.as<float>()[1 * heads.stride[1] + 2 * heads.stride[2] + 1], 8.0f + 2.0f + 5.0f);
  EXPECT_THROW((void)t.split_last(3), Error);
}

TEST_F(Numbered, Views) {
  EXPECT_EQ(t.view({6, -1}).dim(1), 8);
  EXPECT_EQ(t.view({-1}).dim(0), 48);
  EXPECT_EQ(t.view({4, 12}).stride[0], 12);
  EXPECT_EQ(t.view({6, -1}).stride[0], 8);
  EXPECT_THROW((void)t.view({5, -1}), Error);
  EXPECT_THROW((void)t.view({7}), Error);
  EXPECT_THROW((void)t.slice(2, 0, 4).view({-1}), Error) << "a strided tensor can't be viewed flat";
  EXPECT_NO_THROW((void)t.slice(0, 1, 1).view({-1}));
}

TEST_F(Numbered, MemoryIsReadAsItsTypeAlone) {
  EXPECT_NO_THROW((void)t.as<const float>());
  EXPECT_THROW((void)t.as<std::int32_t>(), Error);
}

}  // namespace
}  // namespace sfa
