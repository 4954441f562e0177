#include "attention/flash/decode_attention.h"

#include "attention/flash/decode.h"
#include "attention/flash/decode_cache.h"
#include "attention/flash/flash_tensors.h"
#include "core/build_config.h"
#include "core/device_cuda.h"

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

DecodeParams decode_params(const Tensor& q, const Tensor& v, const Attention::Forward& a, float scale) {
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

KvCache plan_dense_cache(Arena& arena, const AttentionDims& dims, DType dtype, std::int64_t B, std::int64_t capacity) {
  KvCache cache;
  cache.capacity = capacity;
  cache.keys.dense = take_by_head(arena, dtype, B, capacity, dims.G, dims.Dqk);
  cache.keys.v = take_by_head(arena, dtype, B, capacity, dims.G, dims.Dv);
  return cache;
}

KvCache plan_sparse_cache(Arena& arena, const AttentionConfig& config, const AttentionDims& dims, DType dtype,
                          std::int64_t B, std::int64_t capacity) {
  KvCache cache;
  cache.capacity = capacity;
  cache.keys.values = take_by_head(arena, dtype, B, capacity, dims.G, config.k_k);
  cache.keys.indices = take_by_head(arena, DType::u8, B, capacity, dims.G, config.k_k);
  if (config.kv_cache_v == "int8") {
    cache.keys.v = take_by_head(arena, DType::u8, B, capacity, dims.G, dims.Dv, true);
    cache.keys.v_scale = take_by_head(arena, DType::bf16, B, capacity, dims.G, 1);
    cache.keys.v_scale.rank = 3;
  } else {
    cache.keys.v = take_by_head(arena, dtype, B, capacity, dims.G, dims.Dv);
  }
  return cache;
}

void append_to_cache(Context& ctx, const Keys& keys, KvCache& cache) {
  if constexpr (kHasCuda) {
    if (!cache.keys.dense.empty()) append_rows(ctx, keys.dense, cache.keys.dense, cache.length);
    if (!cache.keys.values.empty()) {
      append_rows(ctx, keys.values, cache.keys.values, cache.length);
      append_rows(ctx, keys.indices, cache.keys.indices, cache.length);
    }
    if (cache.keys.v_scale.empty())
      append_rows(ctx, keys.v, cache.keys.v, cache.length);
    else
      append_int8(ctx, keys.v, cache.keys.v, cache.keys.v_scale, cache.length);
  }
  cache.length += keys.v.dim(1);
}

Tensor cached_values(Context& ctx, const Keys& k, std::int64_t Dv, Arena& scratch) {
  if (k.v_scale.empty()) return k.v;
  const Tensor rows = scratch.take(DType::bf16, {k.v.dim(0), k.v.dim(1), k.v.dim(2), Dv});
  if constexpr (kHasCuda) expand_int8(ctx, k.v, k.v_scale, rows);
  return rows;
}

bool decodes(const Attention::Forward& args) {
  return args.out.dim(1) <= kDecodeRows;
}

bool decodes_sparse(const Attention::Forward& args) {
  const Tensor& values = args.k.values;
  return args.k.dense.empty() && !values.empty() && values.dim(3) <= kMostActive && values.stride[1] == values.dim(3) &&
         args.k.indices.stride[1] == values.dim(3);
}

void decode_rows(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Attention::Forward& args,
                 float scale) {
  DecodeParams p = decode_params(q, v, args, scale);
  p.q = q.data;
  p.q_stride = strides_of(q);
  p.k = k.data;
  p.k_stride = strides_of(k);
  launch(ctx, p, args.scratch);
}

void decode_sparse_rows(Context& ctx, const Attention::Forward& args, std::int64_t Dqk, float scale) {
  DecodeParams p = decode_params(args.q.values, args.k.v, args, scale);
  p.shape.Dqk = static_cast<int>(Dqk);
  p.q_sparse = sparse_rows(args.q.values, args.q.indices);
  p.k_sparse = sparse_rows(args.k.values, args.k.indices);
  if (!args.k.v_scale.empty()) {
    p.v_scale = args.k.v_scale.data;
    p.v_scale_stride = strides_of(args.k.v_scale);
  }
  launch(ctx, p, args.scratch);
}

}  // namespace sfa::flash
