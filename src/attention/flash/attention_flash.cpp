// From the project's tensors to the arguments of the CUDA kernels, and what dense and sfa keep.
#include "attention/flash/attention_flash.h"

#include <algorithm>

#include "attention/cost.h"
#include "attention/dense/dense.h"
#include "attention/flash/decode_attention.h"
#include "attention/flash/flash_backward.h"
#include "attention/flash/flash_forward.h"
#include "attention/flash/flash_sm80.h"
#include "attention/flash/flash_tensors.h"
#include "attention/flash/prepare_rotated.h"
#include "attention/flash/project_select.h"
#include "attention/flash/select24.h"
#include "attention/sfa/sfa.h"
#include "core/build_config.h"
#include "core/device_cuda.h"
#include "core/observer.h"
#include "ops/linear/linear.h"
#include "ops/select/select.h"

namespace sfa {
namespace {

using flash::ranges_of;
using flash::strides_of;

flash::Shape shape_of(const Tensor& q, const Tensor& k, const Tensor& v) {
  return {.B = static_cast<int>(q.dim(0)),
          .Tq = static_cast<int>(q.dim(1)),
          .Tk = static_cast<int>(k.dim(1)),
          .H = static_cast<int>(q.dim(2)),
          .G = static_cast<int>(k.dim(2)),
          .Dqk = static_cast<int>(q.dim(3)),
          .Dv = static_cast<int>(v.dim(3))};
}

// Of one layer's queries or keys.
flash::KeptFeatures kept_features(const Tensor& values, const Tensor& indices) {
  require(values.contiguous() && indices.contiguous(), "internal error: supports must be contiguous");
  return {.values = values.data, .indices = indices.as<std::uint8_t>(), .k = static_cast<int>(values.dim(3))};
}

// Which kernels run: those for sm_90a where the card and the head sizes are theirs, otherwise those for every card.
struct Kernels {
  bool forward_sm90 = false, backward_sm90 = false;
};

flash::Shape shape_of(const AttentionDims& dims) {
  return {.B = 1,
          .Tq = 128,
          .Tk = 128,
          .H = static_cast<int>(dims.H),
          .G = static_cast<int>(dims.G),
          .Dqk = static_cast<int>(dims.Dqk),
          .Dv = static_cast<int>(dims.Dv)};
}

Kernels kernels_for(const AttentionDims& dims) {
  if constexpr (kHasCuda) {
    const flash::Shape shape = shape_of(dims);
    if (cuda_ops::compute_capability() == 90)
      return {flash::forward_supported(shape, flash::Product::dense), flash::backward_supported(shape)};
  }
  return {};
}

// The product of queries that are selected 2 of 4: some head sizes of the sm_90a kernels have only the dense one.
flash::Product product_of_2of4(Kernels kernels, const AttentionDims& dims) {
  if constexpr (kHasCuda)
    if (kernels.forward_sm90 && !flash::forward_supported(shape_of(dims), flash::Product::sparse24))
      return flash::Product::dense;
  return flash::Product::sparse24;
}

// Why these head sizes can't be served, or nothing.
std::string heads_why_not(const AttentionDims& dims, DType dtype) {
  if constexpr (!kHasCuda) {
    return "this build has no CUDA backend";
  } else {
    if (dtype != DType::bf16) return "it computes in bf16 (train.dtype)";
    if (!flash::sm80_supported(shape_of(dims)))
      return fmt::format("heads of {} (q, k) and {} (v) features have no kernel; multiples of 16 up to 256 have one",
                         dims.Dqk, dims.Dv);
    return "";
  }
}

// What dense and sfa share: calls of the kernels.
class FlashKernels {
 public:
  explicit FlashKernels(Kernels kernels) : kernels_(kernels) {}

  void forward(Context& ctx, const flash::ForwardParams& params, flash::Product product) const {
    if constexpr (kHasCuda) {
      if (!kernels_.forward_sm90) return flash::sm80_forward(params, product, cuda_ops::stream(ctx));
      // Two counters for dynamic scheduling, zero now and left zero by every launch.
      if (counters_.data() == nullptr) counters_ = Buffer(Device::cuda, 2 * sizeof(std::int32_t), "tile counters");
      flash::ForwardParams p = params;
      p.tile_counter = static_cast<std::int32_t*>(counters_.data());
      flash::forward(p, product, cuda_ops::stream(ctx));
    }
  }

  // Of full rows q and k; of sparse ones where `sparse` says so: q and k are then scratch that holds the full rows
  // after it, and dQ and dK are masked.
  void backward(Context& ctx, const Tensor& q, const Tensor& k, const Attention::Backward& a, float scale,
                bool sparse = false) const {
    if constexpr (kHasCuda) {
      ArenaScope scope(a.scratch);
      flash::BackwardParams p;
      p.shape = shape_of(q, k, a.k.v);
      p.ranges = ranges_of(a.ranges);
      p.scale = scale;
      const bool fused = sparse && kernels_.backward_sm90;
      const std::size_t bytes = kernels_.backward_sm90 ? flash::backward_workspace_bytes(p.shape)
                                                       : flash::sm80_backward_workspace_bytes(p.shape);
      const Tensor workspace = a.scratch.take(DType::u8, {static_cast<std::int64_t>(bytes)});
      if (ctx.planning) return;
      if (fused) {
        p.q_sparse = kept_features(a.q.values, a.q.indices);
        p.k_sparse = kept_features(a.k.values, a.k.indices);
      } else if (sparse) {
        select_expand(ctx, a.q.values, a.q.indices, q);
        select_expand(ctx, a.k.values, a.k.indices, k);
      }
      p.q = q.data;
      p.k = k.data;
      p.v = a.k.v.data;
      p.out = a.out.data;
      p.d_out = a.d_out.data;
      p.lse = a.lse.as<float>();
      p.d_q = a.d_q.data;
      p.d_k = a.d_k.data;
      p.d_v = a.d_v.data;
      p.q_stride = strides_of(q);
      p.k_stride = strides_of(k);
      p.v_stride = strides_of(a.k.v);
      p.out_stride = strides_of(a.out);
      p.d_out_stride = strides_of(a.d_out);
      p.d_q_stride = strides_of(a.d_q);
      p.d_k_stride = strides_of(a.d_k);
      p.d_v_stride = strides_of(a.d_v);
      p.workspace = workspace.data;
      if (kernels_.backward_sm90)
        flash::backward(p, cuda_ops::stream(ctx));
      else
        flash::sm80_backward(p, cuda_ops::stream(ctx));
      if (sparse && !fused) {
        select_mask_gradient(ctx, a.d_q, a.q.indices);
        select_mask_gradient(ctx, a.d_k, a.k.indices);
      }
    }
  }

 private:
  Kernels kernels_;
  mutable Buffer counters_;
};

flash::ForwardParams forward_params(const Tensor& q, const Tensor& k, const Attention::Forward& a, float scale) {
  flash::ForwardParams p;
  p.shape = shape_of(q, k, a.k.v);
  p.ranges = ranges_of(a.ranges);
  p.scale = scale;
  p.q = q.data;
  p.k = k.data;
  p.v = a.k.v.data;
  p.out = a.out.data;
  p.lse = a.lse.as<float>();
  p.q_stride = strides_of(q);
  p.k_stride = strides_of(k);
  p.v_stride = strides_of(a.k.v);
  p.out_stride = strides_of(a.out);
  return p;
}

class DenseFlash final : public DenseAttention {
 public:
  DenseFlash(const AttentionConfig& config, const AttentionDims& dims, DType dtype, Kernels kernels)
      : DenseAttention(config, dims, dtype), kernels_(kernels) {}

  KvCache plan_cache(Arena& arena, std::int64_t B, std::int64_t capacity) const override {
    return flash::plan_dense_cache(arena, config_, dims_, dtype_, B, capacity);
  }
  void append(Context& ctx, const Keys& keys, KvCache& cache) const override {
    flash::append_to_cache(ctx, keys, cache);
  }

  void core(Context& ctx, const Forward& a) const override {
    if (flash::decodes(a)) return flash::decode_rows(ctx, a.q.dense, a.k, a, scale());
    ArenaScope scope(a.scratch);
    const Keys k = flash::as_activations(ctx, a.k, dims_, a.scratch);
    if (ctx.planning) return;
    const flash::ForwardParams p =
        forward_params(a.q.dense, k.dense, {a.q, k, a.ranges, a.out, a.lse, a.scratch}, scale());
    kernels_.forward(ctx, p, flash::Product::dense);
  }
  void core_backward(Context& ctx, const Backward& a) const override {
    kernels_.backward(ctx, a.q.dense, a.k.dense, a, scale());
  }

 private:
  FlashKernels kernels_;
};

class SfaFlash final : public SfaAttention {
 public:
  SfaFlash(const AttentionConfig& config, const AttentionDims& dims, DType dtype, Kernels kernels)
      : SfaAttention(config, dims, dtype),
        product_(two_of_four() ? product_of_2of4(kernels, dims) : flash::Product::dense),
        compressed_(kernels.forward_sm90 && product_ == flash::Product::sparse24),
        projects_(kernels.forward_sm90 && config.selection == "topk"),
        kernels_(kernels) {}

  // The packed projection is scratch: its rows are zero-filled in place for the forward core, and filled again from the
  // sparse rows for backward. q.dense and k.dense are views of it, or of such scratch beside it where it is kept.
  AttentionState plan(Arena& saved, Arena& scratch, std::int64_t B, std::int64_t T) const override {
    const Tensor rows = scratch.take(dtype_, {B, T, dims_.row()});
    AttentionState s = plan_supports(rows, saved, B, T);
    plan_values(s, saved);
    if (compressed_) {
      const std::int64_t blocks = (T + 63) / 64;
      s.q.compressed =
          scratch.take(DType::u8, {B, dims_.H, blocks, flash::compressed_block_bytes(static_cast<int>(dims_.Dqk))});
    }
    const PackedViews views = packed_views(rows, dims_);
    s.q.dense = views.q;
    s.k.dense = views.k;
    return s;
  }

  void prepare(Context& ctx, AttentionState& s) const override {
    const PackedViews views = packed_views(s.qkv, dims_);
    if (config_.selection != "topk_pairs" && flash::selection_supported(static_cast<int>(dims_.Dqk)))
      return select_together(ctx, s, views);
    select_rows(ctx, s);
    if (!keeps_rows()) ctx.copy_rows(s.k.v, views.v);
  }
  bool prepare_rotated(Context& ctx, const QkNormRope& rotation, AttentionState& s) const override {
    return !keeps_rows() && flash::prepare_rotated(ctx, rotation, config_, dims_, s);
  }

  // Where one kernel is faster than the product and a pass of selection (docs/kernels_select.md): not with few rows,
  // which leave tensor cores idle whatever the tiles; not where selection takes longer than the products that hide it.
  bool prepare_projected(Context& ctx, const LinearForward& projection, AttentionState& s) const override {
    if constexpr (kHasCuda) {
      if (!projects_ || keeps_rows() || projection.x.dim(0) < kProjectedRows) return false;
      const flash::ProjectSelectParams p = projection_of(projection, s);
      if (!flash::project_select_supported(p) || std::max(p.k_q, p.k_k) > p.D / 8) return false;
      if (ctx.planning) return true;
      const OpScope scope(ctx, [&] {
        return product_work(
            "linear forward, features selected", projection.x.dim(0), projection.weight.dim(0), projection.x.dim(1),
            bytes_of({projection.x, projection.weight, projection.bias, s.q.values, s.q.indices, s.k.values,
                      s.k.indices, s.k.dense, s.k.v, compressed_ ? s.q.compressed : s.q.dense}));
      });
      flash::project_select(p, cuda_ops::stream(ctx));
      return true;
    }
    return false;
  }

  KvCache plan_cache(Arena& arena, std::int64_t B, std::int64_t capacity) const override {
    return flash::plan_sparse_cache(arena, config_, dims_, dtype_, B, capacity);
  }
  void append(Context& ctx, const Keys& keys, KvCache& cache) const override {
    flash::append_to_cache(ctx, keys, cache);
  }

  // Few queries read the sparse cache as it is; for a chunk of a prompt, full-width rows are made of it first.
  void core(Context& ctx, const Forward& a) const override {
    if (flash::decodes(a) && flash::decodes_sparse(a)) return flash::decode_sparse_rows(ctx, a, dims_.Dqk, scale());
    ArenaScope scope(a.scratch);
    const bool cached = a.k.dense.empty();
    Keys k = flash::as_activations(ctx, a.k, dims_, a.scratch);
    if (cached) {
      const Keys numbered = with_indices(ctx, k, a.scratch);
      k.dense = expanded(ctx, numbered.values, numbered.indices, a.scratch);
    }
    if (cached && flash::decodes(a)) {
      const Tensor q = expanded(ctx, a.q.values, a.q.indices, a.scratch);
      return flash::decode_rows(ctx, q, k, a, scale());
    }
    if (ctx.planning) return;
    flash::ForwardParams p = forward_params(a.q.dense, k.dense, {a.q, k, a.ranges, a.out, a.lse, a.scratch}, scale());
    p.q_compressed = a.q.compressed.data;
    kernels_.forward(ctx, p, product_);
  }

  void core_backward(Context& ctx, const Backward& a) const override {
    kernels_.backward(ctx, a.q.dense, a.k.dense, a, scale(), true);
  }

  // Tensor cores multiply zeros: all of them, or half of them in the sparse product.
  [[nodiscard]] AttentionCost cost(std::int64_t T) const override {
    AttentionCost c = SfaAttention::cost(T);
    const double pairs = visible_pairs(T, config_.window) * static_cast<double>(dims_.H),
                 Dqk = static_cast<double>(dims_.Dqk), Dv = static_cast<double>(dims_.Dv);
    c.executed_forward_flops = 2 * pairs * ((product_ == flash::Product::sparse24 ? Dqk / 2 : Dqk) + Dv);
    c.executed_backward_flops = 2 * pairs * (3 * Dqk + 2 * Dv);
    return c;
  }

 private:
  [[nodiscard]] bool two_of_four() const { return config_.selection == "topk_2of4"; }

  // The full-width rows of sparse ones.
  Tensor expanded(Context& ctx, const Tensor& values, const Tensor& indices, Arena& scratch) const {
    const Tensor rows = scratch.take(dtype_, {values.dim(0), values.dim(1), values.dim(2), dims_.Dqk});
    select_expand(ctx, values, indices, rows);
    return rows;
  }

  // One launch: queries and keys are selected and zero-filled (queries only where the core reads them so), the values
  // move to where they are kept.
  void select_together(Context& ctx, const AttentionState& s, const PackedViews& views) const {
    if (ctx.planning) return;
    if constexpr (kHasCuda) {
      flash::SelectParams q = selection_of(views.q, s.q);
      q.rule = two_of_four() ? flash::Selection::topk_2of4 : flash::Selection::topk;
      if (compressed_) {
        q.compressed = s.q.compressed.data;
        q.dense = nullptr;
      }
      const flash::SelectParams k = selection_of(views.k, s.k);
      flash::RowCopy v;
      if (!keeps_rows())
        v = {.from = views.v.data,
             .to = s.k.v.data,
             .width = static_cast<int>(dims_.G * dims_.Dv),
             .from_stride = strides_of(views.v),
             .to_stride = strides_of(s.k.v)};
      flash::select_features(q, k, v, cuda_ops::stream(ctx));
    }
  }

  [[nodiscard]] flash::ProjectSelectParams projection_of(const LinearForward& projection,
                                                         const AttentionState& s) const {
    const PackedViews views = packed_views(s.qkv, dims_);
    flash::ProjectSelectParams p;
    p.B = static_cast<int>(s.qkv.dim(0));
    p.T = static_cast<int>(s.qkv.dim(1));
    p.I = static_cast<int>(projection.x.dim(1));
    p.H = static_cast<int>(dims_.H);
    p.G = static_cast<int>(dims_.G);
    p.D = static_cast<int>(dims_.Dqk);
    p.Dv = static_cast<int>(dims_.Dv);
    p.x = projection.x.data;
    p.weight = projection.weight.data;
    p.bias = projection.bias.data;
    p.k_q = static_cast<int>(s.q.values.dim(3));
    p.k_k = static_cast<int>(s.k.values.dim(3));
    p.rule = two_of_four() ? flash::Selection::topk_2of4 : flash::Selection::topk;
    p.q_values = s.q.values.data;
    p.q_indices = s.q.indices.as<std::uint8_t>();
    p.k_values = s.k.values.data;
    p.k_indices = s.k.indices.as<std::uint8_t>();
    (compressed_ ? p.q_compressed : p.q_dense) = compressed_ ? s.q.compressed.data : views.q.data;
    p.k_dense = views.k.data;
    p.v = s.k.v.data;
    p.q_stride = strides_of(views.q);
    p.k_stride = strides_of(views.k);
    p.v_stride = strides_of(s.k.v);
    return p;
  }

  // `to`: Queries or Keys.
  template <class Prepared>
  static flash::SelectParams selection_of(const Tensor& rows, const Prepared& to) {
    flash::SelectParams p;
    p.B = static_cast<int>(rows.dim(0));
    p.T = static_cast<int>(rows.dim(1));
    p.heads = static_cast<int>(rows.dim(2));
    p.D = static_cast<int>(rows.dim(3));
    p.k = features_of(to.values);
    p.x = rows.data;
    p.dense = to.dense.data;
    p.x_stride = strides_of(rows);
    p.dense_stride = strides_of(to.dense);
    p.values = to.values.data;
    p.indices = to.indices.template as<std::uint8_t>();
    return p;
  }

  static constexpr std::int64_t kProjectedRows = 16384;  // fewer are projected by themselves

  flash::Product product_;
  bool compressed_;  // queries are compressed when they are selected; otherwise they are left as zero-filled rows,
                     // which the product of 2 of 4 for every card compresses itself
  bool projects_;    // the projection may select features itself: topk alone
  FlashKernels kernels_;
};

}  // namespace

std::string dense_flash_cuda_why_not(const AttentionConfig&, const AttentionDims& dims, DType dtype) {
  return heads_why_not(dims, dtype);
}
std::unique_ptr<Attention> make_dense_flash_cuda(const AttentionConfig& config, const AttentionDims& dims,
                                                 DType dtype) {
  return std::make_unique<DenseFlash>(config, dims, dtype, kernels_for(dims));
}
std::unique_ptr<Attention> make_dense_flash_sm80(const AttentionConfig& config, const AttentionDims& dims,
                                                 DType dtype) {
  return std::make_unique<DenseFlash>(config, dims, dtype, Kernels{});
}

std::string sfa_flash_cuda_why_not(const AttentionConfig& config, const AttentionDims& dims, DType dtype) {
  if (config.zero_overlap == "mask") return "zero_overlap: mask is the reference's alone";
  return heads_why_not(dims, dtype);
}
std::unique_ptr<Attention> make_sfa_flash_cuda(const AttentionConfig& config, const AttentionDims& dims, DType dtype) {
  return std::make_unique<SfaFlash>(config, dims, dtype, kernels_for(dims));
}
std::unique_ptr<Attention> make_sfa_flash_sm80(const AttentionConfig& config, const AttentionDims& dims, DType dtype) {
  return std::make_unique<SfaFlash>(config, dims, dtype, Kernels{});
}

}  // namespace sfa
