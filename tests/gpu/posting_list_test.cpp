// impl: posting_list against impl: reference on the CPU on the same inputs: widths, k up to half of the features and
// beyond 16, ties and rows of zeros, large inputs, grouped heads, windows and documents, lengths beside the tile's, and
// a KV cache.
#include "attention/attention.h"
#include "gpu/twins.h"

namespace sfa::test {
namespace {

struct PostingCase {
  AttentionDims dims;
  int k_q, k_k;
  std::int64_t B, T, window = 0;
  float amplitude = 1;
  bool ties = false, documents = false, two_of_four = false;
};

std::vector<PostingCase> cases() {
  std::vector<PostingCase> list;
  for (const std::int64_t T : {1, 63, 64, 65, 200}) list.push_back({{2, 2, 64, 64}, 8, 8, 2, T});
  list.push_back({{4, 2, 128, 128}, 16, 16, 1, 300});
  list.push_back({{6, 1, 128, 64}, 16, 4, 2, 150});
  list.push_back({{2, 2, 32, 32}, 1, 1, 2, 130});
  list.push_back({{2, 1, 64, 64}, 32, 32, 1, 140});
  list.push_back({{2, 2, 256, 64}, 40, 64, 1, 100});
  list.push_back({{2, 2, 64, 64}, 8, 8, 1, 260, 50});
  list.push_back({{4, 2, 64, 64}, 8, 8, 2, 260, 0, 1, false, true});
  list.push_back({{2, 2, 64, 64}, 8, 8, 1, 150, 0, 1, true});
  list.push_back({{2, 2, 64, 64}, 8, 8, 1, 150, 0, 1e4f});
  list.push_back({{2, 2, 64, 64}, 8, 8, 1, 150, 0, 1, false, false, true});
  return list;
}

// A layer's attention with its memory, planned for forward passes alone.
struct ForwardLayer {
  std::unique_ptr<Attention> attention;
  Arena saved, scratch;
  AttentionState state;

  ForwardLayer(Context& ctx, const PostingCase& c, DType type, const std::string& impl)
      : saved("saved", ctx.device()), scratch("scratch", ctx.device()) {
    AttentionConfig config;
    config.type = "sfa";
    config.impl = impl;
    config.k_q = c.k_q, config.k_k = c.k_k;
    config.selection = c.two_of_four ? "topk_2of4" : "topk";
    attention = make_attention(config, c.dims, ctx.device(), type);
    Context counting = Context::for_planning(ctx.device());
    state = attention->plan(saved, scratch, c.B, c.T);
    attention_forward(counting, *attention, state, Ranges{}, scratch);
    saved.bind();
    scratch.bind();
    state = attention->plan(saved, scratch, c.B, c.T);
  }
};

class PostingListGpu : public GpuTest {
 protected:
  std::vector<float> rows(const PostingCase& c) {
    std::vector<float> v = normal(c.B * c.T * c.dims.row(), 5);
    for (std::size_t i = 0; i < v.size(); ++i) {
      v[i] *= c.amplitude;
      if (c.ties) v[i] = std::round(v[i]);
      if (c.ties && static_cast<std::int64_t>(i) / c.dims.row() % 5 == 0) v[i] = 0;
    }
    return v;
  }
  // First keys of documents of 37 tokens.
  std::vector<std::int32_t> documents(const PostingCase& c) {
    std::vector<std::int32_t> first(static_cast<std::size_t>(c.B * c.T));
    for (std::size_t i = 0; i < first.size(); ++i)
      first[i] = static_cast<std::int32_t>(static_cast<std::int64_t>(i) % c.T / 37 * 37);
    return first;
  }
};

TEST_F(PostingListGpu, EqualsTheReference) {
  for (const DType type : kFloatTypes)
    for (const PostingCase& c : cases()) {
      use(type);
      SCOPED_TRACE(fmt::format("{} D {} Dv {} k {}/{} T {} window {} amplitude {}", name_of(type), c.dims.Dqk,
                               c.dims.Dv, c.k_q, c.k_k, c.T, c.window, c.amplitude));
      const Twin qkv = filled({c.B, c.T, c.dims.row()}, rows(c), type);
      const Twin first_key = integers({c.B, c.T}, documents(c));
      ForwardLayer oracle(cpu_, c, DType::f32, "reference"), posting(*gpu_, c, type, "posting_list");
      const auto ranges = [&](const Tensor& documents) {
        Ranges r;
        r.window = c.window;
        if (c.documents) r.first_key = documents;
        return r;
      };
      cpu_.copy(oracle.state.qkv.data, Device::cpu, qkv.cpu.t.data, Device::cpu,
                static_cast<std::size_t>(qkv.cpu.t.bytes()));
      attention_forward(cpu_, *oracle.attention, oracle.state, ranges(first_key.cpu.t), oracle.scratch);
      std::vector<std::byte> before;
      for (int times = 0; times < 2; ++times) {
        gpu_->copy(posting.state.qkv.data, Device::cuda, qkv.gpu.t.data, Device::cuda,
                   static_cast<std::size_t>(qkv.gpu.t.bytes()));
        attention_forward(*gpu_, *posting.attention, posting.state, ranges(first_key.gpu.t), posting.scratch);
        const std::vector<std::byte> now = bytes_of(*gpu_, posting.state.out);
        EXPECT_TRUE(times == 0 || now == before) << "two runs differ";
        before = now;
      }
      const double limit = type == DType::bf16 ? bf16_tolerance() : 2e-5;
      EXPECT_LT(twin_error(values_of(*gpu_, posting.state.out), values_of(cpu_, oracle.state.out)), limit);
      EXPECT_LT(twin_error(values_of(*gpu_, posting.state.lse), values_of(cpu_, oracle.state.lse)), 1e-5);
    }
}

TEST_F(PostingListGpu, TrainingIsRefusedBeforeItBegins) {
  const PostingCase c{{2, 2, 64, 64}, 8, 8, 1, 64};
  ForwardLayer posting(*gpu_, c, DType::bf16, "posting_list");
  Context counting = Context::for_planning(Device::cuda);
  const Tensor d_out(nullptr, DType::bf16, Device::cuda, {c.B, c.T, c.dims.H, c.dims.Dv}),
      d_qkv(nullptr, DType::bf16, Device::cuda, {c.B, c.T, c.dims.row()});
  try {
    attention_backward(counting, *posting.attention, posting.state, Ranges{}, d_out, d_qkv, posting.scratch);
    FAIL() << "a backward pass was planned";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("posting_list has no backward pass"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace sfa::test
