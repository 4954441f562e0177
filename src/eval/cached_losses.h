// Losses as generation computes them: token by token, keys and values read back from the KV cache. What a cache of
// fewer bits costs (model.attention.kv_cache_v) shows here and nowhere else, since forward passes over whole windows
// read none.
#pragma once

#include <vector>

#include "data/loader.h"
#include "models/model.h"

namespace sfa {

class CachedLosses {
 public:
  /// Caches for windows of T tokens, B at a time.
  CachedLosses(Context& ctx, Model& model, std::int64_t B, std::int64_t T);
  /// losses [B*T], 0 where the target is -1. The batch is of the size planned.
  void operator()(const Batch& batch, std::vector<float>& losses);

 private:
  void read_logits(const Tensor& logits);

  Context& ctx_;
  Model& model_;
  std::int64_t B_, T_;
  Arena arena_;
  Tensor tokens_;                    // [B,1] i32
  std::vector<std::uint16_t> bits_;  // of bf16 logits
  std::vector<float> logits_;        // [B, padded vocabulary]
};

}  // namespace sfa
