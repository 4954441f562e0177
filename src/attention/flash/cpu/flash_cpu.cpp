#include "attention/flash/cpu/flash_cpu.h"

#include <cstring>

#include "attention/dense/dense.h"
#include "attention/flash/cpu/driver.h"
#include "attention/sfa/sfa.h"

namespace sfa {
namespace {

using flash_cpu::Problem;

flash_cpu::Rows rows_of(const Tensor& t) {
  return {t.as<float>(), t.stride[0], t.stride[1], t.stride[2]};
}

// `support`: feature numbers, or masks of `mask_bytes`.
flash_cpu::SparseRows sparse_rows_of(const Tensor& values, const Tensor& support, std::int64_t mask_bytes = 0) {
  return {values.as<float>(),
          support.as<std::uint8_t>(),
          values.stride[0],
          values.stride[1],
          values.stride[2],
          support.stride[0],
          support.stride[1],
          support.stride[2],
          static_cast<int>(values.dim(3)),
          static_cast<int>(mask_bytes)};
}

// The parts that forward and backward arguments have in common.
template <class Args>
Problem problem_of(const Context& ctx, const Args& a, const Attention& attention, bool sparse) {
  const AttentionDims& dims = attention.dims();
  Problem p;
  p.B = a.out.dim(0);
  p.H = dims.H;
  p.G = dims.G;
  p.Tq = a.out.dim(1);
  p.Tk = a.k.v.dim(1);
  p.Dqk = static_cast<int>(dims.Dqk);
  p.Dv = static_cast<int>(dims.Dv);
  p.scale = attention.scale();
  p.sparse = sparse;
  p.round_bf16 = ctx.round_bf16;
  require(p.Tk < (std::int64_t{1} << 31), "attention over {} keys: at most 2^31 - 1 are served", p.Tk);
  if (sparse) {
    p.q_sparse = sparse_rows_of(a.q.values, a.q.indices);
    p.k_sparse = a.k.mask.empty() ? sparse_rows_of(a.k.values, a.k.indices)
                                  : sparse_rows_of(a.k.values, a.k.mask, a.k.mask.dim(3));
  } else {
    p.q = rows_of(a.q.dense);
    p.k = rows_of(a.k.dense);
  }
  p.v = rows_of(a.k.v);
  p.out = rows_of(a.out);
  p.lse = a.lse.template as<float>();
  p.causal = a.ranges.causal;
  p.query_offset = a.ranges.query_offset;
  p.window = a.ranges.window;
  if (!a.ranges.first_key.empty()) {
    p.first_key = a.ranges.first_key.template as<std::int32_t>();
    p.first_key_stride = a.ranges.first_key.stride[0];
  }
  return p;
}

void run_forward(const Context& ctx, const Attention::Forward& a, const Attention& attention, bool sparse) {
  flash_cpu::forward(problem_of(ctx, a, attention, sparse), a.scratch, ctx.planning);
}

void run_backward(const Context& ctx, const Attention::Backward& a, const Attention& attention, bool sparse) {
  Problem p = problem_of(ctx, a, attention, sparse);
  p.d_out = rows_of(a.d_out);
  p.d_q = rows_of(a.d_q);
  p.d_k = rows_of(a.d_k);
  p.d_v = rows_of(a.d_v);
  flash_cpu::backward(p, a.scratch, ctx.planning);
}

class DenseFlashCpu final : public DenseAttention {
 public:
  using DenseAttention::DenseAttention;
  void core(Context& ctx, const Forward& a) const override { run_forward(ctx, a, *this, false); }
  void core_backward(Context& ctx, const Backward& a) const override { run_backward(ctx, a, *this, false); }
};

class SfaFlashCpu final : public SfaAttention {
 public:
  using SfaAttention::SfaAttention;

  // The packed projection lives until prepare has read it.
  AttentionState plan(Arena& saved, Arena& scratch, std::int64_t B, std::int64_t T) const override {
    AttentionState s = plan_supports(scratch.take(dtype_, {B, T, dims_.row()}), saved, B, T);
    plan_values(s, saved);
    return s;
  }

  void prepare(Context& ctx, AttentionState& s) const override {
    select_rows(ctx, s);
    const PackedViews views = packed_views(s.qkv, dims_);
    if (ctx.planning || keeps_rows()) return;
    const flash_cpu::Rows from = rows_of(views.v), to = rows_of(s.k.v);
    const std::int64_t T = views.v.dim(1);
    const std::size_t bytes =
        static_cast<std::size_t>(dims_.G * dims_.Dv) * sizeof(float);  // the heads of a token lie side by side
#pragma omp parallel for schedule(static)
    for (std::int64_t n = 0; n < views.v.dim(0) * T; ++n)
      std::memcpy(to.at(n / T, n % T, 0), from.at(n / T, n % T, 0), bytes);
  }

  void core(Context& ctx, const Forward& a) const override {
    run_forward(ctx, a, *this, true);
  }
  void core_backward(Context& ctx, const Backward& a) const override {
    run_backward(ctx, a, *this, true);
  }
};

std::string why_not(const AttentionDims& dims, DType dtype) {
  if (dtype != DType::f32) return fmt::format("the CPU computes in f32, not {}", name_of(dtype));
  if (dims.Dqk > 256 || dims.Dv > 256)
    return fmt::format("heads of {} and {} features are wider than 256", dims.Dqk, dims.Dv);
  return "";
}

}  // namespace

std::string dense_flash_cpu_why_not(const AttentionConfig&, const AttentionDims& dims, DType dtype) {
  return why_not(dims, dtype);
}

std::unique_ptr<Attention> make_dense_flash_cpu(const AttentionConfig& config, const AttentionDims& dims, DType dtype) {
  return std::make_unique<DenseFlashCpu>(config, dims, dtype);
}

std::string sfa_flash_cpu_why_not(const AttentionConfig& config, const AttentionDims& dims, DType dtype) {
  if (config.zero_overlap != "score") return "zero_overlap: mask is served by the reference alone";
  return why_not(dims, dtype);
}

std::unique_ptr<Attention> make_sfa_flash_cpu(const AttentionConfig& config, const AttentionDims& dims, DType dtype) {
  return std::make_unique<SfaFlashCpu>(config, dims, dtype);
}

}  // namespace sfa
