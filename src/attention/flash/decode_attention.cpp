#include "attention/flash/decode_attention.h"

#include "attention/flash/decode.h"
#include "attention/flash/decode_cache.h"
#include "attention/flash/flash_tensors.h"
#include "core/build_config.h"
#include "core/device_cuda.h"
#include "ops/int8_rows/int8_rows.h"
#include "ops/select/support_mask.h"

namespace sfa::flash {
namespace {

constexpr int kLongestElsewhere = 96;  // bytes of a key: 32 values with their numbers

std::int64_t round_up(std::int64_t n, std::int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

/// [B, capacity, G, width] whose heads are contiguous over tokens, their starts and, for `padded`, their rows at
/// multiples of 16 bytes.
Tensor take_by_head(Arena& arena, DType type, std::int64_t B, std::int64_t capacity, std::int64_t G, std::int64_t width,
                    bool padded = false) {
  const auto element = static_cast<std::int64_t>(size_of(type));
  const std::int64_t row = padded ? round_up(width * element, 16) / element : width;
  Tensor t = arena.take(type, {B, G, round_up(capacity, 16), row}).slice(2, 0, capacity).slice(3, 0, width);
  std::swap(t.shape[1], t.shape[2]);
  std::swap(t.stride[1], t.stride[2]);
  return t;
}

/// `rows` and their scales, of tokens in 8 bits.
void take_int8_by_head(Arena& arena, std::int64_t B, std::int64_t capacity, std::int64_t G, std::int64_t width,
                       Tensor& rows, Tensor& scales) {
  rows = take_by_head(arena, DType::u8, B, capacity, G, width, true);
  scales = take_by_head(arena, DType::bf16, B, capacity, G, 1);
  scales.rank = 3;
}

DecodeParams decode_params(const Tensor& q, const Keys& k, const Attention::Forward& a, float scale) {
  const Tensor& v = k.v;
  DecodeParams p;
  p.shape = {.B = static_cast<int>(q.dim(0)),
             .Tq = static_cast<int>(q.dim(1)),
             .Tk = static_cast<int>(v.dim(1)),
             .H = static_cast<int>(q.dim(2)),
             .G = static_cast<int>(v.dim(2)),
             .Dqk = static_cast<int>(q.dim(3)),
             .Dv = static_cast<int>(v.dim(3))};
  p.ranges = ranges_of(a.ranges);
  p.scale = scale;
  p.v = v.data;
  p.v_stride = strides_of(v);
  p.out = a.out.data;
  p.out_stride = strides_of(a.out);
  p.lse = a.lse.as<float>();
  if (!k.v_scale.empty()) {
    p.v_scale = k.v_scale.data;
    p.v_scale_stride = strides_of(k.v_scale);
  }
  return p;
}

/// `support`: numbers, or masks of `mask_bytes`.
SparseRows sparse_rows(const Tensor& values, const Tensor& support, std::int64_t mask_bytes = 0) {
  return {.values = values.data,
          .support = support.as<std::uint8_t>(),
          .k = static_cast<int>(values.dim(3)),
          .values_stride = strides_of(values),
          .support_stride = strides_of(support),
          .mask_bytes = static_cast<int>(mask_bytes)};
}
SparseRows sparse_keys(const Keys& k) {
  return k.mask.empty() ? sparse_rows(k.values, k.indices) : sparse_rows(k.values, k.mask, k.mask.dim(3));
}

/// Takes the workspace, also while planning, and launches.
void launch(Context& ctx, DecodeParams p, Arena& scratch) {
  if constexpr (kHasCuda) {
    ArenaScope scope(scratch);
    p.workspace = scratch.take(DType::u8, {static_cast<std::int64_t>(decode_workspace_bytes(p.shape))}).data;
    if (!ctx.planning) decode(p, cuda_ops::stream(ctx));
  }
}

}  // namespace

KvCache plan_dense_cache(Arena& arena, const AttentionConfig& config, const AttentionDims& dims, DType dtype,
                         std::int64_t B, std::int64_t capacity) {
  KvCache cache;
  cache.capacity = capacity;
  if (config.kv_cache == "int8") {
    take_int8_by_head(arena, B, capacity, dims.G, dims.Dqk, cache.keys.dense, cache.keys.k_scale);
    take_int8_by_head(arena, B, capacity, dims.G, dims.Dv, cache.keys.v, cache.keys.v_scale);
  } else {
    cache.keys.dense = take_by_head(arena, dtype, B, capacity, dims.G, dims.Dqk);
    cache.keys.v = take_by_head(arena, dtype, B, capacity, dims.G, dims.Dv);
  }
  return cache;
}

KvCache plan_sparse_cache(Arena& arena, const AttentionConfig& config, const AttentionDims& dims, DType dtype,
                          std::int64_t B, std::int64_t capacity) {
  KvCache cache;
  cache.capacity = capacity;
  cache.keys.values = take_by_head(arena, dtype, B, capacity, dims.G, config.k_k);
  const SupportFormat support = support_format(dims.Dqk, config.k_k);
  (support.mask ? cache.keys.mask : cache.keys.indices) =
      take_by_head(arena, DType::u8, B, capacity, dims.G, support.bytes);
  if (config.kv_cache == "int8")
    take_int8_by_head(arena, B, capacity, dims.G, dims.Dv, cache.keys.v, cache.keys.v_scale);
  else
    cache.keys.v = take_by_head(arena, dtype, B, capacity, dims.G, dims.Dv);
  return cache;
}

void append_to_cache(Context& ctx, const Keys& keys, KvCache& cache) {
  if constexpr (kHasCuda) {
    const auto append = [&](const Tensor& rows, const Tensor& to, const Tensor& scales) {
      if (to.empty()) return;
      if (scales.empty())
        append_rows(ctx, rows, to, cache.length);
      else
        int8_append(ctx, rows, {to, scales}, cache.length);
    };
    append(keys.dense, cache.keys.dense, cache.keys.k_scale);
    append(keys.values, cache.keys.values, {});
    append(keys.indices, cache.keys.indices, {});
    if (!cache.keys.mask.empty())
      mask_pack(ctx, keys.indices, cache.keys.mask.slice(1, cache.length, keys.indices.dim(1)));
    append(keys.v, cache.keys.v, cache.keys.v_scale);
  }
  cache.length += keys.v.dim(1);
}

Keys as_activations(Context& ctx, const Keys& k, const AttentionDims& dims, Arena& scratch) {
  const auto expanded = [&](const Tensor& rows, const Tensor& scales, std::int64_t width) {
    if (scales.empty()) return rows;
    const Tensor wide = scratch.take(DType::bf16, {rows.dim(0), rows.dim(1), rows.dim(2), width});
    int8_expand(ctx, {rows, scales}, wide);
    return wide;
  };
  Keys wide = k;
  wide.dense = expanded(k.dense, k.k_scale, dims.Dqk);
  wide.v = expanded(k.v, k.v_scale, dims.Dv);
  wide.k_scale = wide.v_scale = {};
  return wide;
}

bool decodes(const Attention::Forward& args) {
  return args.out.dim(1) <= kDecodeRows;
}

bool decodes_sparse(const Attention::Forward& args) {
  if (!args.k.dense.empty() || args.k.values.empty()) return false;
  const SparseRows keys = sparse_keys(args.k);
  if (keys.values_stride.token != keys.k || keys.support_stride.token != keys.support_bytes()) return false;
  if constexpr (kHasCuda) {
    // The layout counts with Hopper's shared memory; cards with less were never given longer keys.
    if (cuda_ops::compute_capability() != 90 && keys.row_bytes() > kLongestElsewhere) return false;
    return decode_sparse_fits(decode_params(args.q.values, args.k, args, 1.0f).shape, keys.row_bytes());
  }
  return false;
}

void decode_rows(Context& ctx, const Tensor& q, const Keys& k, const Attention::Forward& args, float scale) {
  DecodeParams p = decode_params(q, k, args, scale);
  p.q = q.data;
  p.q_stride = strides_of(q);
  p.k = k.dense.data;
  p.k_stride = strides_of(k.dense);
  if (!k.k_scale.empty()) {
    p.k_scale = k.k_scale.data;
    p.k_scale_stride = strides_of(k.k_scale);
  }
  launch(ctx, p, args.scratch);
}

void decode_sparse_rows(Context& ctx, const Attention::Forward& args, std::int64_t Dqk, float scale) {
  DecodeParams p = decode_params(args.q.values, args.k, args, scale);
  p.shape.Dqk = static_cast<int>(Dqk);
  p.q_sparse = sparse_rows(args.q.values, args.q.indices);
  p.k_sparse = sparse_keys(args.k);
  launch(ctx, p, args.scratch);
}

}  // namespace sfa::flash
