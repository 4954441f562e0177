// Attention::prepare_rotated of sfa's flash against the two passes that it stands for, bit for bit.
#include <gtest/gtest.h>

#include "attention/attention.h"
#include "gpu/twins.h"
#include "ops/qk_norm_rope/qk_norm_rope.h"

namespace sfa::test {
namespace {

struct RotateCase {
  std::string impl, selection;
  AttentionDims dims;
  int k;
  std::int64_t B, T, first_position;
};

std::string describe(const RotateCase& c) {
  return fmt::format("{} {} H {} G {} D {} Dv {} k {} B {} T {} first {}", c.impl, c.selection, c.dims.H, c.dims.G,
                     c.dims.Dqk, c.dims.Dv, c.k, c.B, c.T, c.first_position);
}

// A layer's state, every byte of which is 0x5a until something is written.
struct Layer {
  std::unique_ptr<Attention> attention;
  Arena saved{"saved", Device::cuda}, scratch{"scratch", Device::cuda};
  AttentionState state;
  Tensor rstd;

  Layer(Context& ctx, const RotateCase& c, DType type) {
    AttentionConfig config;
    config.type = "sfa";
    config.impl = c.impl;
    config.selection = c.selection;
    config.k_q = config.k_k = c.k;
    attention = make_attention(config, c.dims, Device::cuda, type);
    plan(c);
    saved.bind();
    scratch.bind();
    plan(c);
    for (const Tensor& t : everything(c)) {
      const std::vector<std::byte> poison(static_cast<std::size_t>(t.bytes()), std::byte{0x5a});
      ctx.copy(t.data, Device::cuda, poison.data(), Device::cpu, poison.size());
    }
    ctx.synchronize();
  }
  void plan(const RotateCase& c) {
    state = attention->plan(saved, scratch, c.B, c.T);
    rstd = saved.take(DType::f32, {c.B * c.T, c.dims.H + c.dims.G});
  }
  [[nodiscard]] std::vector<Tensor> everything(const RotateCase&) const {
    std::vector<Tensor> all{state.qkv,       rstd,     state.q.values, state.q.indices, state.k.values,
                            state.k.indices, state.k.v};
    if (!state.q.compressed.empty()) all.push_back(state.q.compressed);
    return all;
  }
  // What the core and backward read; of the packed rows queries (unless they are compressed) and keys.
  [[nodiscard]] std::vector<std::vector<std::byte>> outputs(Context& ctx, const RotateCase& c) const {
    std::vector<std::vector<std::byte>> all;
    for (const Tensor& t : everything(c)) all.push_back(bytes_of(ctx, t));
    const auto row = static_cast<std::size_t>(c.dims.row()) * 2, width = static_cast<std::size_t>(c.dims.Dqk) * 2,
               begin = state.q.compressed.empty() ? 0 : static_cast<std::size_t>(c.dims.H) * width,
               end = static_cast<std::size_t>(c.dims.H + c.dims.G) * width;
    std::vector<std::byte>& rows = all[0];
    for (std::size_t at = 0; at < rows.size(); ++at)
      if (at % row < begin || at % row >= end) rows[at] = std::byte{0};
    return all;
  }
};

class RotateSelectGpu : public GpuTest {
 protected:
  // Rows of one value (all magnitudes tie where the angle is small), zeros, large numbers of either sign, few distinct
  // values, and now and then NaN and infinity, between ordinary ones.
  std::vector<float> rows(const RotateCase& c) {
    std::vector<float> v = normal(c.B * c.T * c.dims.row(), stream_++);
    const auto row = static_cast<std::size_t>(c.dims.row());
    for (std::size_t i = 0; i < v.size(); ++i) {
      const std::size_t token = i / row, feature = i % row;
      switch (token % 7) {
        case 1:
          v[i] = 0.5f;
          break;
        case 2:
          v[i] = 0;
          break;
        case 3:
          v[i] = feature % 3 == 0 ? -1e4f : 1e4f;
          break;
        case 4:
          v[i] = std::round(v[i]);
          break;
        default:
          break;
      }
      if (token % 13 == 6 && feature % 301 == 17) v[i] = std::numeric_limits<float>::quiet_NaN();
      if (token % 17 == 9 && feature % 301 == 19) v[i] = std::numeric_limits<float>::infinity();
    }
    return v;
  }

  // ones: weights under which ties of the rows stay ties.
  void check(const RotateCase& c, bool in_place, bool ones) {
    SCOPED_TRACE(describe(c) + (in_place ? " in place" : ""));
    use(DType::bf16);
    const Twin x = filled({c.B, c.T, c.dims.row()}, rows(c), DType::bf16);
    const auto weight = [&] {
      const auto n = static_cast<std::size_t>(c.dims.Dqk);
      return ones ? filled({c.dims.Dqk}, std::vector<float>(n, 1.0f), DType::bf16) : random({c.dims.Dqk});
    };
    const Twin q_weight = weight(), k_weight = weight();
    const auto rotation = [&](Layer& layer) {
      if (in_place)
        gpu_->copy(layer.state.qkv.data, Device::cuda, x.gpu.t.data, Device::cuda,
                   static_cast<std::size_t>(x.gpu.t.bytes()));
      return QkNormRope{.x = in_place ? layer.state.qkv : x.gpu.t,
                        .H = c.dims.H,
                        .G = c.dims.G,
                        .D = c.dims.Dqk,
                        .q_weight = q_weight.gpu.t,
                        .k_weight = k_weight.gpu.t,
                        .first_position = c.first_position,
                        .y = layer.state.qkv,
                        .rstd = in_place ? Tensor{} : layer.rstd};
    };
    Layer two(*gpu_, c, DType::bf16), one(*gpu_, c, DType::bf16), again(*gpu_, c, DType::bf16);
    if (c.T == 1 && !one.state.q.compressed.empty()) {  // faster in two
      EXPECT_FALSE(one.attention->prepare_rotated(*gpu_, rotation(one), one.state));
      return;
    }
    qk_norm_rope_forward(*gpu_, rotation(two));
    two.attention->prepare(*gpu_, two.state);
    for (Layer* layer : {&one, &again})
      ASSERT_TRUE(layer->attention->prepare_rotated(*gpu_, rotation(*layer), layer->state));
    const auto want = two.outputs(*gpu_, c), got = one.outputs(*gpu_, c);
    const char* names[] = {"rows", "rstd", "q values", "q indices", "k values", "k indices", "v", "compressed"};
    for (std::size_t i = 0; i < want.size(); ++i) {
      std::size_t at = 0;
      while (at < want[i].size() && want[i][at] == got[i][at]) ++at;
      EXPECT_EQ(at, want[i].size()) << names[i] << " differs from byte " << at << " of " << want[i].size() << " on";
    }
    EXPECT_TRUE(got == again.outputs(*gpu_, c)) << "two runs differ";
  }
};

TEST_F(RotateSelectGpu, TheTwoPassesBitForBit) {
  const AttentionDims heads[] = {{3, 3, 0, 0}, {6, 3, 0, 0}, {8, 2, 0, 0}, {16, 8, 0, 0}, {4, 4, 0, 0}};
  std::size_t number = 0;
  for (const char* impl : {"flash", "flash_sm80"})
    for (const char* selection : {"topk", "topk_2of4", "topk_pairs"})
      for (const std::int64_t D : {64, 128})
        for (const int k : {1, 2, 8, 16, 32})
          for (const std::int64_t T : {1, 17, 127, 128, 129, 1000}) {
            if (k % 2 != 0 && std::string(selection) == "topk_pairs") continue;
            AttentionDims dims = heads[number % 5];
            dims.Dqk = D;
            dims.Dv = number % 3 == 0 ? 64 : D;
            const RotateCase c{impl, selection, dims, k, T == 1000 ? 1 : 2, T, number % 2 == 0 ? 0 : 777};
            check(c, number % 3 == 1, number % 4 == 2);
            if (HasFatalFailure()) return;
            ++number;
          }
}

TEST_F(RotateSelectGpu, ManySequencesOfOneToken) {
  for (const char* selection : {"topk", "topk_2of4", "topk_pairs"})
    check({"flash", selection, {16, 8, 128, 128}, 16, 133, 1, 4095}, true, false);
}

TEST_F(RotateSelectGpu, OtherCasesAreLeftToTheTwoPasses) {
  use(DType::bf16);
  const RotateCase c{"flash", "topk", {2, 1, 32, 32}, 8, 1, 40, 0};
  Layer layer(*gpu_, c, DType::bf16);
  const Twin x = random({c.B, c.T, c.dims.row()}), weight = random({c.dims.Dqk});
  EXPECT_FALSE(layer.attention->prepare_rotated(*gpu_,
                                                {.x = x.gpu.t,
                                                 .H = c.dims.H,
                                                 .G = c.dims.G,
                                                 .D = c.dims.Dqk,
                                                 .q_weight = weight.gpu.t,
                                                 .k_weight = weight.gpu.t,
                                                 .y = layer.state.qkv,
                                                 .rstd = layer.rstd},
                                                layer.state));
  for (const std::byte b : bytes_of(*gpu_, layer.state.k.v)) ASSERT_EQ(b, std::byte{0x5a});
}

}  // namespace
}  // namespace sfa::test
