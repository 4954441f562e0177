// The kernels behind posting_list.h.
#pragma once

#include "attention/attention.h"

namespace sfa::cuda_ops {

/// Keys of a tile of kPostingTile, feature by feature: entries [first[f], first[f + 1]) of the tile's keys_a_tile slots
/// hold the keys (0 .. kPostingTile - 1, ascending) that have feature f, and their values.
inline constexpr std::int64_t kPostingTile = 64;
struct PostingLists {
  Tensor first;   // [B, G, tiles, Dqk + 1] u16
  Tensor keys;    // [B, G, tiles, kPostingTile * k] u8
  Tensor values;  // [B, G, tiles, kPostingTile * k] dtype of the activations
};

void build_posting_lists(Context& ctx, const Keys& keys, std::int64_t features, const PostingLists& lists);

struct PostingForward {
  Queries q;  // values, indices
  Tensor v;   // [B, Tk, G, Dv]
  PostingLists lists;
  Ranges ranges;
  float scale = 0;
  Tensor out, lse;  // [B, Tq, H, Dv], [B, H, Tq] f32
};
/// Dv is 32, 64 or 128.
void posting_list_forward(Context& ctx, const PostingForward& args);

}  // namespace sfa::cuda_ops
