// Queries and keys of a trained model in a file, so that attention is timed on supports that occur.
//
// HDF5: attributes format ("sfa.support"), version (1), tokens, layers, heads, kv_heads, head_dim; datasets q0, k0, q1,
// k1, ..., one a layer: f32, [tokens, heads, head_dim] and [tokens, kv_heads, head_dim] row by row, as attention
// multiplies them: under sfa zero outside the support.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sfa {

struct SupportDump {
  std::int64_t tokens = 0, heads = 0, kv_heads = 0, head_dim = 0;
  std::vector<std::vector<float>> q, k;  // a layer each

  /// Throws Error when `path` exists or can't be written.
  void write(const std::string& path) const;
  /// Throws Error naming what does not fit.
  static SupportDump read(const std::string& path);

  /// Row of query (or key) head `head` counted over the layers (layer by layer, wrapping around), token `token`
  /// (wrapping around).
  [[nodiscard]] const float* query(std::int64_t head, std::int64_t token) const { return row(q, heads, head, token); }
  [[nodiscard]] const float* key(std::int64_t head, std::int64_t token) const { return row(k, kv_heads, head, token); }

 private:
  [[nodiscard]] const float* row(const std::vector<std::vector<float>>& layers, std::int64_t count, std::int64_t head,
                                 std::int64_t token) const {
    const auto layer = static_cast<std::size_t>(head / count) % layers.size();
    return layers[layer].data() + ((token % tokens) * count + head % count) * head_dim;
  }
};

}  // namespace sfa
