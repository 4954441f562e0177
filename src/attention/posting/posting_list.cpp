#include "attention/posting/posting_list.h"

#include "attention/posting/posting_list_cuda.h"
#include "attention/sfa/sfa.h"
#include "core/build_config.h"

namespace sfa {
namespace {

class SfaPostingList final : public SfaAttention {
 public:
  using SfaAttention::SfaAttention;

  AttentionState plan(Arena& saved, Arena& scratch, std::int64_t B, std::int64_t T) const override {
    AttentionState s = plan_supports(scratch.take(dtype_, {B, T, dims_.row()}), saved, B, T);
    s.k.v = packed_views(s.qkv, dims_).v;
    return s;
  }

  void prepare(Context& ctx, AttentionState& s) const override { select_rows(ctx, s); }

  void core(Context& ctx, const Forward& a) const override {
    ArenaScope scope(a.scratch);
    const std::int64_t B = a.k.values.dim(0),
                       tiles = (a.k.values.dim(1) + cuda_ops::kPostingTile - 1) / cuda_ops::kPostingTile,
                       slots = cuda_ops::kPostingTile * config_.k_k;
    const cuda_ops::PostingLists lists{.first = a.scratch.take(DType::u16, {B, dims_.G, tiles, dims_.Dqk + 1}),
                                       .keys = a.scratch.take(DType::u8, {B, dims_.G, tiles, slots}),
                                       .values = a.scratch.take(dtype_, {B, dims_.G, tiles, slots})};
    const Keys keys = with_indices(ctx, a.k, a.scratch);
    if (ctx.planning) return;
    if constexpr (kHasCuda) {
      cuda_ops::build_posting_lists(ctx, keys, dims_.Dqk, lists);
      cuda_ops::posting_list_forward(
          ctx,
          {.q = a.q, .v = a.k.v, .lists = lists, .ranges = a.ranges, .scale = scale(), .out = a.out, .lse = a.lse});
    }
  }

  // A training step is planned before anything runs, so that this is said before the first step.
  void core_backward(Context&, const Backward&) const override {
    fail(
        "model.attention.impl: posting_list has no backward pass: it evaluates and generates; train with impl: auto, "
        "the "
        "weights fit both");
  }
};

}  // namespace

std::string sfa_posting_list_why_not(const AttentionConfig& config, const AttentionDims& dims, DType) {
  if constexpr (!kHasCuda) return "this build has no CUDA backend";
  if (config.zero_overlap == "mask") return "zero_overlap: mask is the reference's alone";
  if (dims.Dqk > 256) return fmt::format("heads of {} features are wider than 256", dims.Dqk);
  if (config.k_k > 64) return fmt::format("{} features a key are more than 64", config.k_k);
  if (dims.Dv != 32 && dims.Dv != 64 && dims.Dv != 128)
    return fmt::format("values are 32, 64 or 128 wide, not {}", dims.Dv);
  return "";
}

std::unique_ptr<Attention> make_sfa_posting_list(const AttentionConfig& config, const AttentionDims& dims,
                                                 DType dtype) {
  return std::make_unique<SfaPostingList>(config, dims, dtype);
}

}  // namespace sfa
