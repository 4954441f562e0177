// impl: flash and flash_sm80 on the GPU behind the attention interface, forward, backward and through a KV cache,
// against impl: reference on the CPU in f32 on the same bf16 inputs. The kernels alone are held against double by
// flash_forward_check.cu and flash_backward_check.cu over many more shapes.
#include <algorithm>

#include "attention/attention.h"
#include "gpu/twins.h"
#include "ops/linear/linear.h"

namespace sfa::test {
namespace {

struct FlashCase {
  AttentionConfig config;
  AttentionDims dims;
  std::int64_t B, T, window = 0;
};

AttentionConfig config_of(const std::string& impl, const std::string& type, int k, const std::string& selection) {
  AttentionConfig config;
  config.type = type;
  config.impl = impl;
  config.k_q = config.k_k = k;
  config.selection = selection;
  return config;
}

std::vector<FlashCase> cases() {
  std::vector<FlashCase> list;
  const auto add = [&](const std::string& impl, const AttentionDims& dims, std::int64_t window) {
    const int k = static_cast<int>(dims.Dqk) / 8;
    list.push_back({config_of(impl, "dense", 0, "topk"), dims, 2, 200, window});
    list.push_back({config_of(impl, "sfa", k, "topk"), dims, 2, 200, window});
    list.push_back({config_of(impl, "sfa", k, "topk_2of4"), dims, 2, 200, window});
    list.push_back({config_of(impl, "sfa", k / 2 * 2, "topk_pairs"), dims, 2, 200, window});
  };
  for (const AttentionDims& dims : {AttentionDims{4, 2, 64, 64}, AttentionDims{2, 2, 128, 128}})
    for (const std::int64_t window : {0, 50})
      for (const char* impl : {"flash", "flash_sm80"}) add(impl, dims, window);
  // Other sizes: filled up, or in part on the kernels for every card, whose product of 2 of 4 serves every size.
  for (const AttentionDims& dims :
       {AttentionDims{2, 1, 32, 64}, AttentionDims{2, 2, 64, 128}, AttentionDims{2, 2, 96, 96},
        AttentionDims{2, 1, 256, 256}, AttentionDims{3, 1, 80, 48}})
    for (const char* impl : {"flash", "flash_sm80"}) add(impl, dims, 0);
  return list;
}

// Keys whose support is one bit a feature in a cache: even, odd and in pieces of four; beyond half of the features;
// more bytes than the decoding kernel's buffers hold beside sixteen query rows, and beside any.
std::vector<FlashCase> masked_cases() {
  std::vector<FlashCase> list;
  for (const auto& [k, dims] : {std::pair{28, AttentionDims{4, 4, 64, 64}},
                                {38, AttentionDims{4, 2, 64, 64}},
                                {9, AttentionDims{8, 1, 64, 64}},
                                {6, AttentionDims{2, 2, 32, 64}},
                                {30, AttentionDims{3, 1, 80, 48}},
                                {20, AttentionDims{2, 2, 96, 96}},
                                {40, AttentionDims{4, 2, 128, 128}},
                                {100, AttentionDims{8, 1, 128, 128}},
                                {64, AttentionDims{2, 1, 256, 256}}})
    list.push_back({config_of("flash", "sfa", k, "topk"), dims, 2, 200});
  list.push_back({config_of("flash", "sfa", 28, "topk_2of4"), {2, 2, 64, 64}, 2, 200, 50});
  list.push_back({config_of("flash_sm80", "sfa", 24, "topk_pairs"), {2, 1, 64, 64}, 2, 200});
  list.push_back({config_of("flash", "sfa", 38, "topk"), {4, 2, 64, 64}, 2, 200});
  list.back().config.k_q = 64;  // queries whole
  return list;
}

std::string describe(const FlashCase& c) {
  return fmt::format("{} {} {} k {} {} D {} {} window {}", c.config.impl, c.config.type, c.config.selection,
                     c.config.k_q, c.config.k_k, c.dims.Dqk, c.dims.Dv, c.window);
}

// A layer's attention with its memory, planned as a model plans it.
struct PlannedLayer {
  std::unique_ptr<Attention> attention;
  Arena saved, scratch;
  AttentionState state;

  /// `impl` instead of the case's.
  PlannedLayer(Context& ctx, const FlashCase& c, DType type, const std::string& impl)
      : saved("saved", ctx.device()), scratch("scratch", ctx.device()) {
    AttentionConfig config = c.config;
    config.impl = impl;
    attention = make_attention(config, c.dims, ctx.device(), type);
    Context counting = Context::for_planning(ctx.device());
    state = attention->plan(saved, scratch, c.B, c.T);
    const Tensor d_out(nullptr, type, ctx.device(), {c.B, c.T, c.dims.H, c.dims.Dv}),
        d_qkv(nullptr, type, ctx.device(), {c.B, c.T, c.dims.row()});
    attention_forward(counting, *attention, state, Ranges{}, scratch);
    attention_backward(counting, *attention, state, Ranges{}, d_out, d_qkv, scratch);
    saved.bind();
    scratch.bind();
    state = attention->plan(saved, scratch, c.B, c.T);
  }
};

class FlashAttentionGpu : public GpuTest {};

TEST_F(FlashAttentionGpu, LayersForwardAndBackward) {
  type_ = DType::bf16;
  for (const FlashCase& c : cases()) {
    SCOPED_TRACE(describe(c));
    const Twin qkv = random({c.B, c.T, c.dims.row()}), d_out = random({c.B, c.T, c.dims.H, c.dims.Dv});
    const Twin d_qkv = output({c.B, c.T, c.dims.row()});
    const Ranges ranges{.causal = true, .query_offset = 0, .window = c.window, .first_key = {}};
    PlannedLayer oracle(cpu_, c, DType::f32, "reference"), flash(*gpu_, c, DType::bf16, c.config.impl);
    cpu_.copy(oracle.state.qkv.data, Device::cpu, qkv.cpu.t.data, Device::cpu,
              static_cast<std::size_t>(qkv.cpu.t.bytes()));
    attention_forward(cpu_, *oracle.attention, oracle.state, ranges, oracle.scratch);
    attention_backward(cpu_, *oracle.attention, oracle.state, ranges, d_out.cpu.t, d_qkv.cpu.t, oracle.scratch);
    std::vector<std::byte> first;
    for (int times = 0; times < 2; ++times) {
      gpu_->copy(flash.state.qkv.data, Device::cuda, qkv.gpu.t.data, Device::cuda,
                 static_cast<std::size_t>(qkv.gpu.t.bytes()));
      attention_forward(*gpu_, *flash.attention, flash.state, ranges, flash.scratch);
      attention_backward(*gpu_, *flash.attention, flash.state, ranges, d_out.gpu.t, d_qkv.gpu.t, flash.scratch);
      // P, dS, O and the gradients are each rounded to bf16 once.
      EXPECT_LT(twin_error(values_of(*gpu_, flash.state.out), values_of(cpu_, oracle.state.out)), bf16_tolerance());
      EXPECT_LT(twin_error(values_of(*gpu_, flash.state.lse), values_of(cpu_, oracle.state.lse)), 1e-4);
      EXPECT_LT(error(d_qkv), bf16_tolerance(2));
      if (times == 0)
        first = gpu_bytes(d_qkv);
      else
        EXPECT_EQ(first, gpu_bytes(d_qkv)) << "two runs differ";
    }
  }
}

// All tokens of a case through a cache of the flash variant, in chunks; returns the outputs [B, T, H, Dv].
std::vector<float> through_cache(Context& gpu, const FlashCase& c, const Tensor& qkv,
                                 const std::vector<std::int64_t>& chunks) {
  const auto attention = make_attention(c.config, c.dims, Device::cuda, DType::bf16);
  const Ranges ranges{.causal = true, .query_offset = 0, .window = c.window, .first_key = {}};
  Arena cache_arena("cache", Device::cuda);
  attention->plan_cache(cache_arena, c.B, c.T);
  cache_arena.bind();
  KvCache cache = attention->plan_cache(cache_arena, c.B, c.T);
  // What the cost promises, up to the padding of the length to 16 tokens.
  const double promised = attention->cost(c.T).kv_bytes_per_token * static_cast<double>(c.B * ((c.T + 15) / 16 * 16));
  EXPECT_LE(static_cast<double>(cache_arena.used()), promised + 4 * 256);
  const std::int64_t width = c.dims.H * c.dims.Dv;
  std::vector<float> out(static_cast<std::size_t>(c.B * c.T * width));
  for (const std::int64_t n : chunks) {
    const std::int64_t at = cache.length;
    Arena saved("saved", Device::cuda), scratch("scratch", Device::cuda);
    Context counting = Context::for_planning(Device::cuda);
    KvCache copy = cache;
    AttentionState state = attention->plan(saved, scratch, c.B, n);
    attention_forward_cached(counting, *attention, state, copy, ranges, scratch);
    saved.bind();
    scratch.bind();
    state = attention->plan(saved, scratch, c.B, n);
    for (std::int64_t b = 0; b < c.B; ++b)
      gpu.copy(state.qkv.slice(0, b, 1).data, Device::cuda, qkv.slice(0, b, 1).slice(1, at, n).data, Device::cuda,
               static_cast<std::size_t>(n * c.dims.row()) * 2);
    attention_forward_cached(gpu, *attention, state, cache, ranges, scratch);
    const auto got = values_of(gpu, state.out);
    for (std::int64_t b = 0; b < c.B; ++b)
      std::copy_n(got.begin() + b * n * width, n * width, out.begin() + (b * c.T + at) * width);
  }
  return out;
}

// Prompts at once and in chunks, decoding with one and with several queries.
const std::vector<std::vector<std::int64_t>> kChunks = {
    {200}, {130, 69, 1}, {130, 53, 16, 1}, {1, 15, 184}, {64, 1, 1, 2, 7, 16, 17, 92}};

// Tokens in chunks through a cache give what one pass over all of them gives.
TEST_F(FlashAttentionGpu, ChunksThroughACacheAreOnePass) {
  type_ = DType::bf16;
  std::vector<FlashCase> list = cases();
  for (const FlashCase& c : masked_cases()) list.push_back(c);
  list.push_back({config_of("flash", "sfa", 40, "topk_2of4"), {4, 2, 128, 128}, 2, 200});
  list.push_back({config_of("flash", "sfa", 7, "topk"), {8, 1, 64, 64}, 3, 200});
  for (const FlashCase& c : list) {
    SCOPED_TRACE(describe(c));
    const Twin qkv = random({c.B, c.T, c.dims.row()});
    PlannedLayer oracle(cpu_, c, DType::f32, "reference");
    const Ranges ranges{.causal = true, .query_offset = 0, .window = c.window, .first_key = {}};
    cpu_.copy(oracle.state.qkv.data, Device::cpu, qkv.cpu.t.data, Device::cpu,
              static_cast<std::size_t>(qkv.cpu.t.bytes()));
    attention_forward(cpu_, *oracle.attention, oracle.state, ranges, oracle.scratch);
    const auto want = values_of(cpu_, oracle.state.out);
    for (const auto& chunks : kChunks) {
      const auto out = through_cache(*gpu_, c, qkv.gpu.t, chunks);
      EXPECT_LT(twin_error(out, want), bf16_tolerance());
      EXPECT_TRUE(out == through_cache(*gpu_, c, qkv.gpu.t, chunks)) << "two runs differ";
    }
  }
}

// V in 8 bits moves an element of V by half a scale at the most, max |V| / 254 of its row and a rounding of the scale
// to bf16, and an output, a mean of such elements, by no more than that; then come the roundings of both outputs to
// bf16.
TEST_F(FlashAttentionGpu, EightBitValuesStayWithinHalfAScale) {
  type_ = DType::bf16;
  for (FlashCase c : cases()) {
    if (c.config.type != "sfa") continue;
    SCOPED_TRACE(describe(c));
    const Twin qkv = random({c.B, c.T, c.dims.row()});
    const auto rows = values_of(cpu_, qkv.cpu.t);
    const std::size_t width = static_cast<std::size_t>(c.dims.row()),
                      v_at = static_cast<std::size_t>((c.dims.H + c.dims.G) * c.dims.Dqk);
    float most = 0;
    for (std::size_t i = 0; i < rows.size(); ++i)
      if (i % width >= v_at) most = std::max(most, std::fabs(rows[i]));
    const float bound = most / 254 * (1 + 0x1p-7f) + 2 * most * 0x1p-8f;
    const std::vector<std::int64_t> chunks = {100, 70, 16, 13, 1};
    const auto full = through_cache(*gpu_, c, qkv.gpu.t, chunks);
    c.config.kv_cache = "int8";
    const auto eight = through_cache(*gpu_, c, qkv.gpu.t, chunks);
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < full.size(); ++i) {
      ASSERT_LE(std::fabs(eight[i] - full[i]), bound) << i;
      difference += static_cast<double>((eight[i] - full[i]) * (eight[i] - full[i]));
      norm += static_cast<double>(full[i] * full[i]);
    }
    EXPECT_GT(difference, 0.0) << "nothing was rounded";
    // Errors of elements are as good as independent: a row's rounding has 1 / sqrt(12) of a scale, and a mean less.
    EXPECT_LT(std::sqrt(difference / norm), 0.02);
  }
}

// The projection handed to attention, which may select features in the same kernel, against the projection followed by
// attention. Sums are of small integers, exact in any order: both give the same bits.
TEST_F(FlashAttentionGpu, TheProjectionHandedOverGivesTheSameBits) {
  type_ = DType::bf16;
  std::vector<FlashCase> list;
  for (const char* selection : {"topk", "topk_2of4", "topk_pairs"})
    for (const auto& [dims, k] : {std::pair{AttentionDims{4, 2, 64, 64}, 8},
                                  {AttentionDims{2, 2, 128, 128}, 16},
                                  {AttentionDims{3, 1, 64, 128}, 4},
                                  {AttentionDims{2, 2, 128, 128}, 20},
                                  {AttentionDims{2, 1, 96, 96}, 12}})
      for (const std::int64_t B : {1, 5})
        list.push_back({config_of("auto", "sfa", k, selection), dims, B, 8200 / B + 1});
  const std::int64_t I = 256;
  for (const FlashCase& c : list) {
    SCOPED_TRACE(describe(c));
    const auto integers = [&](std::initializer_list<std::int64_t> dims, std::uint64_t stream, std::int32_t most) {
      Owned t = make(Device::cuda, DType::bf16, dims);
      std::vector<float> values;
      for (const std::int32_t i : integer_values(stream, t.t.numel(), 2 * most + 1))
        values.push_back(static_cast<float>(i - most) / 8);
      assign(*gpu_, t.t, values);
      return t;
    };
    const Owned x = integers({c.B * c.T, I}, 1, 2), weight = integers({c.dims.row(), I}, 2, 2),
                bias = integers({c.dims.row()}, 3, 20), d_out = integers({c.B, c.T, c.dims.H, c.dims.Dv}, 4, 8);
    PlannedLayer apart(*gpu_, c, DType::bf16, "auto"), together(*gpu_, c, DType::bf16, "auto");
    const Ranges ranges;
    const auto projection = [&](PlannedLayer& layer) {
      return LinearForward{x.t, weight.t, bias.t, layer.state.qkv.view({c.B * c.T, -1}), Tensor{}};
    };
    linear_forward(*gpu_, projection(apart));
    attention_forward(*gpu_, *apart.attention, apart.state, ranges, apart.scratch);
    const LinearForward handed = projection(together);
    attention_forward(*gpu_, *together.attention, together.state, ranges, together.scratch, {&handed});
    const auto same = [&](const Tensor& a, const Tensor& b, const char* what) {
      EXPECT_TRUE(bytes_of(*gpu_, a) == bytes_of(*gpu_, b)) << what;
    };
    same(apart.state.q.values, together.state.q.values, "values of queries");
    same(apart.state.q.indices, together.state.q.indices, "indices of queries");
    same(apart.state.k.values, together.state.k.values, "values of keys");
    same(apart.state.k.indices, together.state.k.indices, "indices of keys");
    same(apart.state.k.v, together.state.k.v, "v");
    same(apart.state.out, together.state.out, "out");
    same(apart.state.lse, together.state.lse, "log-sum-exp");
    const Owned d_apart = make(Device::cuda, DType::bf16, {c.B, c.T, c.dims.row()}),
                d_together = make(Device::cuda, DType::bf16, {c.B, c.T, c.dims.row()});
    attention_backward(*gpu_, *apart.attention, apart.state, ranges, d_out.t, d_apart.t, apart.scratch);
    attention_backward(*gpu_, *together.attention, together.state, ranges, d_out.t, d_together.t, together.scratch);
    same(d_apart.t, d_together.t, "gradient of the packed rows");
  }
}

// What a cache in 8 bits holds is the rows of int8_round, so attention through it is that of the reference over rounded
// rows: of keys and values when dense, of values when sparse.
TEST_F(FlashAttentionGpu, EightBitCachesAreAttentionOverRoundedRows) {
  type_ = DType::bf16;
  std::vector<std::int64_t> few{1, 15};  // the kernels that read the cache as it is; the first token reads itself
  while (few.size() < 13) few.push_back(16);
  few.push_back(8);
  std::vector<FlashCase> list = cases();
  for (const FlashCase& c : masked_cases()) list.push_back(c);
  for (FlashCase c : list) {
    SCOPED_TRACE(describe(c));
    const Twin qkv = random({c.B, c.T, c.dims.row()});
    c.config.as_cached = "int8";
    PlannedLayer oracle(cpu_, c, DType::f32, "reference"), whole(*gpu_, c, DType::bf16, c.config.impl);
    const Ranges ranges{.causal = true, .query_offset = 0, .window = c.window, .first_key = {}};
    const auto run = [&](Context& ctx, PlannedLayer& layer, const Tensor& rows) {
      ctx.copy(layer.state.qkv.data, rows.device, rows.data, rows.device, static_cast<std::size_t>(rows.bytes()));
      attention_forward(ctx, *layer.attention, layer.state, ranges, layer.scratch);
      return values_of(ctx, layer.state.out);
    };
    auto want = run(cpu_, oracle, qkv.cpu.t);
    // In one pass the rounded rows are rounded to bf16 once more.
    EXPECT_LT(twin_error(run(*gpu_, whole, qkv.gpu.t), want), bf16_tolerance(2));
    c.config.as_cached = "full";
    c.config.kv_cache = "int8";
    auto got = through_cache(*gpu_, c, qkv.gpu.t, few);
    EXPECT_TRUE(got == through_cache(*gpu_, c, qkv.gpu.t, few)) << "two runs differ";
    const std::int64_t width = c.dims.H * c.dims.Dv;
    for (std::int64_t b = 0; b < c.B; ++b)
      for (std::int64_t i = 0; i < width; ++i) got[b * c.T * width + i] = want[b * c.T * width + i] = 0;
    EXPECT_LT(twin_error(got, want), bf16_tolerance());
  }
}

}  // namespace
}  // namespace sfa::test
