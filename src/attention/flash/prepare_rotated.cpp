// From the op and the layer's state to the arguments of the kernel. Bytes that the op moves at the least: the rows
// read, keys and either kind of queries, supports and values written.
#include "attention/flash/prepare_rotated.h"

#include "attention/flash/rotate_select.h"
#include "core/build_config.h"
#include "core/device_cuda.h"
#include "core/observer.h"
#include "ops/qk_norm_rope/qk_norm_rope.h"

namespace sfa::flash {
namespace {

// The rows are those of the layer, every tensor is where the kernel expects it, and the pass is worth it.
bool fits(const QkNormRope& r, const AttentionDims& dims, const AttentionState& s) {
  // A block of compressed rows that holds one token is filled faster by a pass of its own.
  if (!s.q.compressed.empty() && r.x.dim(1) == 1) return false;
  return r.x.dtype == DType::bf16 && r.H == dims.H && r.G == dims.G && r.D == dims.Dqk && r.x.dim(2) == dims.row() &&
         r.y.data == s.qkv.data && r.y.dim(2) == dims.row() && r.x.contiguous() && s.k.v.contiguous();
}

RotatedHeads heads_of(std::int64_t heads, const Tensor& weight, const Tensor& values, const Tensor& indices) {
  RotatedHeads h;
  h.heads = static_cast<int>(heads);
  h.k = static_cast<int>(values.dim(3));
  h.weight = weight.data;
  h.values = values.data;
  h.indices = indices.as<std::uint8_t>();
  return h;
}

RotateSelectParams params_of(const QkNormRope& r, const AttentionConfig& config, const AttentionDims& dims,
                             const AttentionState& s) {
  const PackedViews views = packed_views(s.qkv, dims);
  RotateSelectParams p;
  p.B = static_cast<int>(r.x.dim(0));
  p.T = static_cast<int>(r.x.dim(1));
  p.D = static_cast<int>(r.D);
  p.row = static_cast<int>(dims.row());
  p.q = heads_of(r.H, r.q_weight, s.q.values, s.q.indices);
  p.k = heads_of(r.G, r.k_weight, s.k.values, s.k.indices);
  if (config.selection == "topk_2of4") p.q.rule = Selection::topk_2of4;
  p.q.compressed = s.q.compressed.data;
  p.q.dense = s.q.compressed.empty() ? views.q.data : nullptr;
  p.k.dense = views.k.data;
  p.pairs = config.selection == "topk_pairs";
  p.x = r.x.data;
  p.eps = r.eps;
  p.theta = r.theta;
  p.first_position = r.first_position;
  p.rstd = r.rstd.as<float>();
  p.v = s.k.v.data;
  p.v_width = static_cast<int>(dims.G * dims.Dv);
  return p;
}

OpWork work_of(const QkNormRope& r, const AttentionState& s) {
  const double k_rows = static_cast<double>(r.x.dim(0) * r.x.dim(1) * r.G * r.D * 2);
  const double q_rows = s.q.compressed.empty() ? k_rows / static_cast<double>(r.G) * static_cast<double>(r.H) : 0;
  return {.kind = "qk norm rope select",
          .shape = fmt::format("{} x ({} + {}) heads of {}", r.x.dim(0) * r.x.dim(1), r.H, r.G, r.D),
          .bytes = k_rows + q_rows +
                   bytes_of({r.x, s.k.v, s.q.values, s.q.indices, s.k.values, s.k.indices, s.q.compressed, r.rstd})};
}

}  // namespace

bool prepare_rotated(Context& ctx, const QkNormRope& rotation, const AttentionConfig& config, const AttentionDims& dims,
                     AttentionState& state) {
  if constexpr (kHasCuda) {
    if (!fits(rotation, dims, state)) return false;
    const RotateSelectParams params = params_of(rotation, config, dims, state);
    if (!rotate_select_supported(params)) return false;
    if (ctx.planning || rotation.x.numel() == 0) return true;
    const OpScope scope(ctx, [&] { return work_of(rotation, state); });
    rotate_select(params, cuda_ops::stream(ctx));
    return true;
  }
  return false;
}

}  // namespace sfa::flash
