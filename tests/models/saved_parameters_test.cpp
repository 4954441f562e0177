// Parameters in and out of checkpoints, from and to every device, in the foreground and in the background.
#include "checkpoint/helpers.h"
#include "checkpoint/model_checkpoint.h"
#include "support/compare.h"
#include "support/devices.h"

namespace sfa::test {
namespace {

struct SavedParameters : DeviceTest {
  TempFolder run;
  ParameterList list;
  std::vector<float> values;

  SavedParameters() {
    list.add({.name = "h.0.weight", .shape = {77, 13}, .hf = {}});
    list.add({.name = "h.0.bias", .shape = {5}, .hf = {}});
    list.add({.name = "wte", .shape = {100'003, 3}, .hf = {}});
    values = normal(list.flat_size(), 1);
  }
  Tensor flat(const std::vector<float>& of) { return pool.floats(of, {list.flat_size()}); }

  // What the model uses of a flat buffer: the padding between parameters is not saved.
  template <class T>
  std::vector<std::vector<T>> parts(const Tensor& t) {
    std::vector<std::vector<T>> all;
    for (std::size_t i = 0; i < list.all().size(); ++i) all.push_back(elements<T>(ctx, list.view(t, i)));
    return all;
  }

  void expect_saved(const fs::path& folder, const Tensor& original) {
    CheckpointReader reader(folder);
    const Tensor f32 = pool.poisoned(DType::f32, {list.flat_size()});
    const Tensor bf16 = pool.poisoned(DType::bf16, {list.flat_size()});
    read_parameters(ctx, reader, list, "param", f32);
    read_parameters(ctx, reader, list, "param", bf16);
    EXPECT_EQ(parts<float>(f32), parts<float>(original));
    EXPECT_EQ(parts<std::uint16_t>(bf16), parts<std::uint16_t>(pool.floats(values, {list.flat_size()}, DType::bf16)));
  }
};

TEST_P(SavedParameters, InTheForeground) {
  const Tensor original = flat(values);
  CheckpointWriter writer(run.path(), 1);
  add_parameters(ctx, writer, list, "param", original);
  expect_saved(writer.publish({writer.finish_file()}, {}, ""), original);
}

// The weights change as soon as start() has returned, as they do when training goes on.
TEST_P(SavedParameters, InTheBackground) {
  const Tensor original = flat(values), changing = flat(values);
  const Device device = ctx.device();
  BackgroundCheckpoint background(run.path(), {},
                                  [device](std::size_t bytes) { return transfer_memory(device, bytes); });
  for (int step = 1; step <= 3; ++step) {
    copy_parameters(ctx, background, list, "param", changing);
    ctx.synchronize();
    background.start(step, {}, "");
    ctx.zero(changing);
    ctx.synchronize();
    expect_saved(background.wait(), original);
    ctx.copy(changing.data, device, original.data, device, static_cast<std::size_t>(original.bytes()));
  }
}

TEST_P(SavedParameters, AnotherModelIsRefused) {
  const Tensor original = flat(values);
  {
    CheckpointWriter writer(run.path(), 1);
    add_parameters(ctx, writer, list, "param", original);
    writer.publish({writer.finish_file()}, {}, "");
  }
  CheckpointReader reader(find_checkpoint(run.path()));
  EXPECT_ERROR(read_parameters(ctx, reader, list, "adam_m", original), "'adam_m/h.0.weight'");
  ParameterList wider = list;
  wider.add({.name = "more", .shape = {4}, .hf = {}});
  const Tensor more = pool.zeros(DType::f32, {wider.flat_size()});
  EXPECT_ERROR(read_parameters(ctx, reader, wider, "param", more), "'param/more'");
  ParameterList turned;
  turned.add({.name = "h.0.weight", .shape = {13, 77}, .hf = {}});
  EXPECT_ERROR(read_parameters(ctx, reader, turned, "param", original), "[77, 13]");
}

SFA_ON_EVERY_DEVICE(SavedParameters);

}  // namespace
}  // namespace sfa::test
