// Decoding as the flash variants on a GPU use it: KV caches laid out for it, and calls of the kernels by tensors.
//
// In a cache the tokens of one head follow each other: [B, G, capacity, width] in memory, seen as [B, capacity, G,
// width]. A tile of keys is then one contiguous piece, however narrow its rows are.
#pragma once

#include "attention/attention.h"

namespace sfa::flash {

/// dense and v; with their scales when config.kv_cache says int8.
KvCache plan_dense_cache(Arena& arena, const AttentionConfig& config, const AttentionDims& dims, DType dtype,
                         std::int64_t B, std::int64_t capacity);
/// values, indices or mask (ops/select/support_format.h), v; and v_scale when config.kv_cache says int8.
KvCache plan_sparse_cache(Arena& arena, const AttentionConfig& config, const AttentionDims& dims, DType dtype,
                          std::int64_t B, std::int64_t capacity);
/// Appends what the cache holds.
void append_to_cache(Context& ctx, const Keys& keys, KvCache& cache);

/// The same keys with rows in 8 bits, if any, expanded to bf16 into scratch.
Keys as_activations(Context& ctx, const Keys& k, const AttentionDims& dims, Arena& scratch);

/// Few enough query rows.
bool decodes(const Attention::Forward& args);
/// Sparse keys that the kernel reads as they are: in a cache's layout, few enough bytes a key for its buffers.
bool decodes_sparse(const Attention::Forward& args);

/// q and k.dense full-width rows; those of k in 8 bits where it has their scales.
void decode_rows(Context& ctx, const Tensor& q, const Keys& k, const Attention::Forward& args, float scale);
/// args.q and args.k sparse; Dqk is the width that their indices address.
void decode_sparse_rows(Context& ctx, const Attention::Forward& args, std::int64_t Dqk, float scale);

}  // namespace sfa::flash
