#include "attention/flash/decode_attention.h"

#include "attention/flash/decode.h"
#include "attention/flash/decode_cache.h"
#include "attention/flash/flash_tensors.h"
#include "core/build_config.h"
#include "core/device_cuda.h"
#include "ops/int8_rows/int8_rows.h"

namespace sfa::flash {
namespace {

/// Beyond so many stored features a key, its row is expanded: a tile would not fit into the kernel's buffers, and the
/// bytes saved are few.
constexpr std::int64_t kMostActive = 32;

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

SparseRows sparse_rows(const Tensor& values, const Tensor& indices) {
  return {.values = values.data,
          .indices = indices.as<std::uint8_t>(),
          .k = static_cast<int>(values.dim(3)),
          .values_stride = strides_of(values),
          .indices_stride = strides_of(indices)};
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
  cache.keys.indices = take_by_head(arena, DType::u8, B, capacity, dims.G, config.k_k);
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
  const Tensor& values = args.k.values;
  return args.k.dense.empty() && !values.empty() && values.dim(3) <= kMostActive && values.stride[1] == values.dim(3) &&
         args.k.indices.stride[1] == values.dim(3);
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
  p.k_sparse = sparse_rows(args.k.values, args.k.indices);
  launch(ctx, p, args.scratch);
}

}  // namespace sfa::flash
