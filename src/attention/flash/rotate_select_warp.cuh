// The work of one warp of rotate_select.cu.
#pragma once

#include "attention/flash/rotate_select.h"
#include "attention/flash/rotate_select_store.cuh"
#include "attention/flash/select_segment.cuh"
#include "cuda/vector.cuh"
#include "ops/qk_norm_rope/norm_rotation.cuh"
#include "ops/select/pairs_network.cuh"

namespace sfa::flash {

/// What is selected: `two_of_four` is for queries, keys take the k largest beside it.
enum class RotatedRule : std::uint8_t { topk, two_of_four, pairs };

/// kKeep: no less than both k, or 0 for any.
template <int kD, int kKeep, RotatedRule kRule>
struct RotateSelectWarp {
  using Tile = RotateSelectTile<kD>;
  static constexpr bool kPairs = kRule == RotatedRule::pairs, kTwoOfFour = kRule == RotatedRule::two_of_four;
  static constexpr int kTokens = Tile::kTokens, kHeads = Tile::kHeads;
  static constexpr int kHeadLanes = Tile::kHeadLanes, kRowLanes = kD / kSegment;
  static constexpr int kSegmentBytes = kTokens * kHeads * kD * 2, kAngleBytes = 32 * 64;
  using Pack = Vector<bf16, 8>;
  static_assert(Tile::kCompressedBytes <= kSegmentBytes);

  /// Shared memory; k features a row at the most.
  static constexpr int bytes(int k) { return kSegmentBytes + kAngleBytes + (kTokens * kHeads * k * 3 + 15) / 16 * 16; }
  /// Groups of four heads, and the v heads.
  static __host__ __device__ int groups(const RotateSelectParams& p) {
    return groups_of(p.q.heads) + groups_of(p.k.heads) + 1;
  }
  static __host__ __device__ int groups_of(int heads) { return (heads + kHeads - 1) / kHeads; }

  const RotateSelectParams& p;
  unsigned char* memory;   // of this warp
  const unsigned* pairs;   // stored_pair() of 0 .. 15
  int lane, batch, first;  // first: of the tile's tokens

  /// Four heads of queries or keys.
  struct Group {
    const RotatedHeads& of;
    int head, column, first;  // head: the first one; column: of a row where it begins; first: of all heads

    [[nodiscard]] __device__ __forceinline__ int heads() const { return min(kHeads, of.heads - head); }
  };
  __device__ __forceinline__ Group group(int number) const {
    const int queries = groups_of(p.q.heads);
    const bool is_query = number < queries;
    const RotatedHeads& of = is_query ? p.q : p.k;
    const int head = (is_query ? number : number - queries) * kHeads, before = is_query ? 0 : p.q.heads;
    return {of, head, (before + head) * kD, before + head};
  }

  /// The same, with a lane that the compiler takes for another: it would otherwise keep the addresses of every phase in
  /// registers through all of them.
  [[nodiscard]] __device__ __forceinline__ RotateSelectWarp fresh() const {
    RotateSelectWarp same = *this;
    asm volatile("" : "+r"(same.lane));
    same.lane &= 31;  // known not to be negative
    return same;
  }

  __device__ __forceinline__ uint4* segments() const { return reinterpret_cast<uint4*>(memory); }
  __device__ __forceinline__ float4* angles() const { return reinterpret_cast<float4*>(memory + kSegmentBytes) + lane; }
  __device__ __forceinline__ unsigned short* values() const {
    return reinterpret_cast<unsigned short*>(memory + kSegmentBytes + kAngleBytes);
  }
  __device__ __forceinline__ std::uint8_t* indices(int k) const {
    return reinterpret_cast<std::uint8_t*>(values() + kTokens * kHeads * k);
  }

  // The norm's layout: this lane's token of the warp's, and which eight pairs of a head are its own.
  [[nodiscard]] __device__ __forceinline__ int own_token() const { return lane / kHeadLanes; }
  [[nodiscard]] __device__ __forceinline__ int own_part() const { return lane % kHeadLanes; }
  [[nodiscard]] __device__ __forceinline__ int time_of(int token) const { return Tile::time_of(first, token); }
  [[nodiscard]] __device__ __forceinline__ std::int64_t row_of(int token) const {
    return static_cast<std::int64_t>(batch) * p.T + time_of(token);
  }

  /// Where this lane's eight low features (half 0) or high ones (half 1) of the group's head h stand in shared memory.
  [[nodiscard]] __device__ __forceinline__ uint4* own_piece(int h, int half) const {
    const int piece = own_part() + half * kHeadLanes;  // of the row's, eight a segment
    return segments() + piece_at((own_token() * kHeads + h) * kRowLanes + piece / 8, piece % 8);
  }

  __device__ __forceinline__ void set_angles(const cuda_ops::Turns& turns) const {
    const double position = static_cast<double>(p.first_position + time_of(own_token()));
    float cosine[8], sine[8];
#pragma unroll
    for (int i = 0; i < 8; ++i)
      cuda_ops::angle_at(position, turns.per_position[own_part() * 8 + i], sine[i], cosine[i]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      angles()[i * 32] = {cosine[4 * i], cosine[4 * i + 1], cosine[4 * i + 2], cosine[4 * i + 3]};
      angles()[(2 + i) * 32] = {sine[4 * i], sine[4 * i + 1], sine[4 * i + 2], sine[4 * i + 3]};
    }
  }

  /// The group's rows on their way to shared memory; zeros where there is no token or head.
  __device__ __forceinline__ void fetch(const Group& g) const {
    const auto* x = static_cast<const bf16*>(p.x) + row_of(own_token()) * p.row + g.column + own_part() * 8;
    const bool token = time_of(own_token()) < p.T;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const bool live = token && h < g.heads();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto to = static_cast<unsigned>(__cvta_generic_to_shared(own_piece(h, half)));
        const void* from = live ? x + h * kD + half * kD / 2 : p.x;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(live ? 16 : 0)
                     : "memory");
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }

  /// A line of 128 bytes a lane: the whole of a group.
  __device__ __forceinline__ void expect(const Group& g) const {
    constexpr int kLines = 32 / kTokens;  // a token
    static_assert(kLines * 64 == kHeads * kD);
    const int token = lane / kLines, at = lane % kLines * 64;
    if (time_of(token) < p.T && at < g.heads() * kD)
      asm volatile(
          "prefetch.global.L2 [%0];" ::"l"(static_cast<const bf16*>(p.x) + row_of(token) * p.row + g.column + at));
  }

  struct Part {
    Pack low, high;
  };

  /// Calls use(head of the group, whether it is there, its normed and rotated part of this lane) head by head.
  template <class Use>
  __device__ __forceinline__ void norm_heads(const Group& g, const Use& use) const {
    float cosine[8], sine[8], low_weight[8], high_weight[8];
    load(reinterpret_cast<float(&)[4]>(cosine[0]), reinterpret_cast<const float*>(angles()));
    load(reinterpret_cast<float(&)[4]>(cosine[4]), reinterpret_cast<const float*>(angles() + 32));
    load(reinterpret_cast<float(&)[4]>(sine[0]), reinterpret_cast<const float*>(angles() + 64));
    load(reinterpret_cast<float(&)[4]>(sine[4]), reinterpret_cast<const float*>(angles() + 96));
    const auto* weight = static_cast<const bf16*>(g.of.weight) + own_part() * 8;
    load(low_weight, weight);
    load(high_weight, weight + kD / 2);
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    float own_rstd = 0;
#pragma unroll 2
    for (int h = 0; h < kHeads; ++h) {
      const bool live = time_of(own_token()) < p.T && h < g.heads();
      const Pack x_low = *reinterpret_cast<const Pack*>(own_piece(h, 0)),
                 x_high = *reinterpret_cast<const Pack*>(own_piece(h, 1));
      float squares = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) squares = cuda_ops::add_squares(squares, to_float(x_low.v[i]), to_float(x_high.v[i]));
      const float rstd = cuda_ops::rstd_of<kHeadLanes>(squares, 1.0f / static_cast<float>(kD), p.eps);
      if (own_part() == h) own_rstd = rstd;
      Part rotated;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float low = to_float(x_low.v[i]), high = to_float(x_high.v[i]);
        cuda_ops::norm_and_rotate(low, high, rstd, low_weight[i], high_weight[i], cosine[i], sine[i]);
        rotated.low.v[i] = from_float<bf16>(low);
        rotated.high.v[i] = from_float<bf16>(high);
      }
      if (!live) rotated = {};
      use(h, live, rotated);
    }
    static_assert(kHeads <= kHeadLanes);
    if (p.rstd != nullptr && own_part() < g.heads() && own_part() < kHeads && time_of(own_token()) < p.T)
      p.rstd[row_of(own_token()) * (p.q.heads + p.k.heads) + g.first + own_part()] = own_rstd;
  }

  template <bool k2of4>
  __device__ __forceinline__ void select(const Group& g) const {
    const int part = lane % kRowLanes, row = lane / kRowLanes, k = g.of.k;
    Chosen<kRowLanes> chosen;
    chosen.template choose<k2of4, kKeep>(segments(), lane, k, part);
    chosen.stage_support(segments(), lane, values() + row * k, indices(k) + row * k, part);
    chosen.zero_rest();
    if (k2of4 && g.of.compressed != nullptr) {
      __syncwarp();  // the operand takes the place of the rows
      Tile::stage_compressed(reinterpret_cast<unsigned*>(memory), pairs, chosen, row, part);
    } else {
      chosen.write(segments(), lane);
    }
  }

  __device__ __forceinline__ void select_rows(const Group& g) const {
    norm_heads(g, [&](int h, bool, const Part& rotated) {
      *reinterpret_cast<Pack*>(own_piece(h, 0)) = rotated.low;
      *reinterpret_cast<Pack*>(own_piece(h, 1)) = rotated.high;
    });
    __syncwarp();
    if (kTwoOfFour && g.of.rule == Selection::topk_2of4)
      fresh().template select<kTwoOfFour>(g);
    else
      fresh().template select<false>(g);
  }

  /// Whole pairs: chosen and stored head by head.
  __device__ __forceinline__ void select_pairs(const Group& g) const {
    const int pairs_wanted = g.of.k / 2;
    norm_heads(g, [&](int h, bool live, Part& x) {
      std::uint32_t key[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) key[i] = cuda_ops::norm_bits(to_float(x.low.v[i]), to_float(x.high.v[i]));
      unsigned chosen;
      if constexpr (kKeep > 0)
        chosen = cuda_ops::choose_pairs<kHeadLanes>(key, pairs_wanted, own_part());
      else
        chosen = cuda_ops::choose_pairs_by_counting<kHeadLanes>(key, pairs_wanted, own_part());
      int place = (own_token() * kHeads + h) * g.of.k + cuda_ops::before<kHeadLanes>(__popc(chosen), own_part());
      auto* value = reinterpret_cast<bf16*>(values());
      std::uint8_t* index = indices(g.of.k);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if ((chosen >> i & 1u) == 0) {
          x.low.v[i] = x.high.v[i] = from_float<bf16>(0.0f);
          continue;
        }
        value[place] = x.low.v[i];
        value[place + pairs_wanted] = x.high.v[i];
        index[place] = static_cast<std::uint8_t>(own_part() * 8 + i);
        index[place + pairs_wanted] = static_cast<std::uint8_t>(own_part() * 8 + i + kD / 2);
        ++place;
      }
      if (g.of.dense == nullptr || !live) return;
      auto* to = static_cast<bf16*>(g.of.dense) + row_of(own_token()) * p.row + (g.head + h) * kD + own_part() * 8;
      *reinterpret_cast<Pack*>(to) = x.low;
      *reinterpret_cast<Pack*>(to + kD / 2) = x.high;
    });
  }

  /// What the group left in shared memory goes where it belongs; `next` is on its way before the last part.
  __device__ __forceinline__ void store(const Group& g) const {
    const Tile out{lane, batch, first, p.T};
    if (kTwoOfFour && g.of.compressed != nullptr)
      out.store_compressed(g.of, g.head, g.heads(), reinterpret_cast<const uint4*>(memory));
    else if (!kPairs && g.of.dense != nullptr)
      out.store_rows(static_cast<unsigned short*>(g.of.dense) + g.head * kD, p.row, g.heads(), segments());
    out.store_support(g.of, g.head, g.heads(), values(), indices(g.of.k));
  }

  __device__ __forceinline__ void copy_values() const {
    const int pieces = p.v_width / 8;
    const int column = (p.q.heads + p.k.heads) * kD;
#pragma unroll 1
    for (int token = 0; token < kTokens; ++token) {
      if (time_of(token) >= p.T) continue;
      const auto* from = reinterpret_cast<const uint4*>(static_cast<const bf16*>(p.x) + row_of(token) * p.row + column);
      auto* to = reinterpret_cast<uint4*>(static_cast<bf16*>(p.v) + row_of(token) * p.v_width);
#pragma unroll 4
      for (int i = lane; i < pieces; i += 32) to[i] = from[i];
    }
  }

  /// Every parts-th group from `part` on.
  __device__ __forceinline__ void run(const cuda_ops::Turns& turns, int part, int parts) const {
    const int last = groups(p) - 1;  // the v heads
    if (part < last) {
      fetch(group(part));
      set_angles(turns);
    }
#pragma unroll 1
    for (; part < last; part += parts) {
      const Group g = group(part);
      const int next = part + parts;
      if (next < last) fresh().expect(group(next));
      if constexpr (kPairs)
        fresh().select_pairs(g);
      else
        fresh().select_rows(g);
      __syncwarp();
      fresh().store(g);
      __syncwarp();
      if (next < last) fresh().fetch(group(next));
    }
    if (part == last) copy_values();
  }
};

}  // namespace sfa::flash
