// Tests that hold for every device: TEST_P bodies of a DeviceTest run on the CPU and, where one can be used, on a GPU.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "core/context.h"
#include "support/tensors.h"

namespace sfa::test {

inline std::vector<Device> devices() {
  std::vector<Device> all{Device::cpu};
  if (cuda_available()) all.push_back(Device::cuda);
  return all;
}

class DeviceTest : public ::testing::TestWithParam<Device> {
 protected:
  Context ctx{GetParam()};
  Pool pool{ctx};
};

inline std::string device_suffix(const ::testing::TestParamInfo<Device>& info) {
  return name_of(info.param);
}

}  // namespace sfa::test

/// The fixture must derive from DeviceTest.
#define SFA_ON_EVERY_DEVICE(fixture) \
  INSTANTIATE_TEST_SUITE_P(Devices, fixture, ::testing::ValuesIn(sfa::test::devices()), sfa::test::device_suffix)
