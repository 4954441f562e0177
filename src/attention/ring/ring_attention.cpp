#include "attention/ring/ring_attention.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "attention/ring/key_ring.h"
#include "attention/ring/ring_rows.h"
#include "ops/select/select.h"

namespace sfa {
namespace {

// The rows of one of a rank's two chunks.
Tensor half_of(const Tensor& t, int half) {
  return t.empty() ? Tensor{} : t.slice(0, half * (t.dim(0) / 2), t.dim(0) / 2);
}
Queries half_of(const Queries& q, int half) {
  return {half_of(q.dense, half), half_of(q.values, half), half_of(q.indices, half), half_of(q.compressed, half),
          half_of(q.metadata, half)};
}
Keys half_of(const Keys& k, int half) {
  return {half_of(k.dense, half), half_of(k.values, half), half_of(k.indices, half), {}, half_of(k.v, half), {}, {}};
}

Tensor like(Arena& arena, DType type, const Tensor& t) {
  return arena.take(type, {t.dim(0), t.dim(1), t.dim(2), t.dim(3)});
}

// A query chunk that sees some key of a key chunk, as halves of the rows of here and of where the keys come from.
struct Pair {
  int query, key;
  Ranges ranges;
};

// Tensors that travel together, one message a hop: parts of one block of bytes.
class Message {
 public:
  void add(const Tensor& like, DType type) {
    parts_.emplace_back(nullptr, type, like.device,
                        std::initializer_list<std::int64_t>{like.dim(0), like.dim(1), like.dim(2), like.dim(3)});
  }
  void take(Arena& arena) {
    constexpr std::int64_t kAlignment = 256;
    std::int64_t size = 0;
    for (const Tensor& part : parts_) size += (part.bytes() + kAlignment - 1) / kAlignment * kAlignment;
    bytes_ = arena.take(DType::u8, {size});
    std::int64_t at = 0;
    for (Tensor& part : parts_) {
      if (bytes_.data != nullptr) part.data = bytes_.slice(0, at, part.bytes()).data;
      at += (part.bytes() + kAlignment - 1) / kAlignment * kAlignment;
    }
  }
  [[nodiscard]] const Tensor& bytes() const { return bytes_; }
  [[nodiscard]] const Tensor& part(std::size_t i) const { return parts_[i]; }

 private:
  Tensor bytes_;
  std::vector<Tensor> parts_;
};

// The keys of a hop as they pass: own ones first, then those that have arrived, in two places by turns.
class TravellingKeys {
 public:
  TravellingKeys(Context& ctx, KeyRing& ring, const Keys& own, Arena& scratch)
      : ring_(ring),
        own_(own),
        kept_(own.values.empty() ? std::vector<Tensor>{own.dense, own.v}
                                 : std::vector<Tensor>{own.values, own.indices, own.v}) {
    for (int i = 0; i < std::min(3, ring.size()); ++i) {
      for (const Tensor& t : kept_) places_[i].add(t, t.dtype);
      places_[i].take(scratch);
    }
    for (std::size_t i = 0; i < kept_.size(); ++i) ctx.copy_rows(places_[0].part(i), kept_[i]);
    if (sparse() && !own.dense.empty()) rows_ = like(scratch, own.dense.dtype, own.dense);
  }

  /// Queues the passing on of hop's keys, unless they are the last.
  void pass_on(Context& ctx, int hop) {
    if (hop + 1 < ring_.size() && !ctx.planning) ring_.pass(ctx, place(hop).bytes(), place(hop + 1).bytes());
  }

  /// What core reads at a hop. Where it reads sfa's keys as full-width rows, these are made.
  Keys at(Context& ctx, int hop) {
    if (hop == 0) return own_;
    const Message& m = place(hop);
    Keys keys;
    keys.v = m.part(kept_.size() - 1);
    if (!sparse()) {
      keys.dense = m.part(0);
      return keys;
    }
    keys.values = m.part(0);
    keys.indices = m.part(1);
    if (rows_.empty()) return keys;
    select_expand(ctx, keys.values, keys.indices, rows_);
    keys.dense = rows_;
    return keys;
  }

 private:
  [[nodiscard]] bool sparse() const { return !own_.values.empty(); }
  [[nodiscard]] const Message& place(int hop) const { return places_[hop == 0 ? 0 : 1 + (hop - 1) % 2]; }

  KeyRing& ring_;
  Keys own_;
  std::vector<Tensor> kept_;  // of own_, what travels
  Message places_[3];
  Tensor rows_;
};

// The pairs of a hop, in the order in which they are computed.
std::vector<Pair> pairs_of(const Ranges& whole, int hop, std::int64_t c) {
  const KeyRing& ring = *whole.ring;
  const int source = (ring.rank() - hop + ring.size()) % ring.size();
  std::vector<Pair> pairs;
  for (int query = 0; query < 2; ++query)
    for (int key = 0; key < 2; ++key) {
      const int from = ring.chunk(source, key);
      const std::int64_t apart = ring.chunk(ring.rank(), query) - from;
      // The nearest key is the last of its chunk, seen from the first query of its own.
      if (apart < 0 || (whole.window > 0 && apart * c - (c - 1) >= whole.window)) continue;
      Ranges ranges{.causal = true, .query_offset = apart * c, .window = whole.window, .first_key = {}};
      if (!whole.first_key.empty()) {
        const Tensor& f = whole.first_key;
        ranges.first_key = half_of(f.slice(0, from, 1).view({f.dim(1), f.dim(2)}), query);
      }
      pairs.push_back({query, key, ranges});
    }
  return pairs;
}

void require_halves(const AttentionState& s, const Ranges& r) {
  require(s.out.dim(0) % 2 == 0 && r.causal && r.query_offset == 0 &&
              (r.first_key.empty() || (r.first_key.rank == 3 && r.first_key.dim(0) == 2 * r.ring->size() &&
                                       r.first_key.dim(1) == s.out.dim(0) && r.first_key.dim(2) == s.out.dim(1))),
          "internal error: a ring of {} attends {} with first keys {}", r.ring->size(), s.out, r.first_key);
}

}  // namespace

void ring_core(Context& ctx, const Attention& attention, AttentionState& state, const Ranges& ranges, Arena& scratch) {
  require_halves(state, ranges);
  ArenaScope scope(scratch);
  KeyRing& ring = *ranges.ring;
  TravellingKeys keys(ctx, ring, state.k, scratch);
  const bool rounds = state.out.dtype != DType::f32;
  const Tensor sum = rounds ? like(scratch, DType::f32, state.out) : state.out;
  const Tensor part = like(scratch, state.out.dtype, half_of(state.out, 0));
  const Tensor part_lse = scratch.take(DType::f32, {part.dim(0), part.dim(2), part.dim(1)});
  bool begun[2] = {};
  for (int hop = 0; hop < ring.size(); ++hop) {
    keys.pass_on(ctx, hop);
    const Keys here = keys.at(ctx, hop);
    for (const Pair& p : pairs_of(ranges, hop, state.out.dim(1))) {
      const Tensor out = half_of(sum, p.query), lse = half_of(state.lse, p.query);
      const bool first = !begun[p.query];
      const Queries q = half_of(state.q, p.query);
      const Keys k = half_of(here, p.key);
      attention.core(ctx, {q, k, p.ranges, first && !rounds ? out : part, first ? lse : part_lse, scratch});
      begun[p.query] = true;
      if (!first)
        attention_merge(ctx, out, lse, part, part_lse);
      else if (rounds)
        ring_collect(ctx, {.from = part, .indices = {}, .to = out});
    }
    if (hop + 1 < ring.size() && !ctx.planning) ring.arrived(ctx);
  }
  if (rounds) ring_store(ctx, {.from = sum, .indices = {}, .to = state.out});
}

void ring_core_backward(Context& ctx, const Attention& attention, AttentionState& state, const Ranges& ranges,
                        const Tensor& d_out, const PackedViews& d, Arena& scratch) {
  require_halves(state, ranges);
  ArenaScope scope(scratch);
  KeyRing& ring = *ranges.ring;
  TravellingKeys keys(ctx, ring, state.k, scratch);
  const bool sparse = !state.k.values.empty();
  const Tensor d_q = like(scratch, DType::f32, d.q);
  Message sums[2];  // of keys and values, on their way: what has added up so far, in two places by turns
  for (Message& m : sums) {
    m.add(sparse ? state.k.values : d.k, DType::f32);
    m.add(d.v, DType::f32);
    m.take(scratch);
  }
  const DType type = d_out.dtype;
  const Tensor part_q = like(scratch, type, half_of(d.q, 0)), part_k = like(scratch, type, half_of(d.k, 0)),
               part_v = like(scratch, type, half_of(d.v, 0));
  bool begun_q[2] = {}, begun_k[2] = {};
  for (int hop = 0; hop < ring.size(); ++hop) {
    keys.pass_on(ctx, hop);
    const Keys here = keys.at(ctx, hop);
    bool joined = ctx.planning || hop == 0;
    const auto join = [&] {
      if (!joined) ring.arrived(ctx);
      joined = true;
    };
    for (const Pair& p : pairs_of(ranges, hop, state.out.dim(1))) {
      const Queries q = half_of(state.q, p.query);
      const Keys k = half_of(here, p.key);
      attention.core_backward(ctx, {q, k, p.ranges, half_of(state.out, p.query), half_of(state.lse, p.query),
                                    half_of(d_out, p.query), part_q, part_k, part_v, scratch});
      ring_collect(ctx, {part_q, {}, half_of(d_q, p.query), begun_q[p.query]});
      join();  // gradients of these keys from the ranks before
      const bool add = hop > 0 || begun_k[p.key];
      ring_collect(ctx, {part_k, sparse ? k.indices : Tensor{}, half_of(sums[hop % 2].part(0), p.key), add});
      ring_collect(ctx, {part_v, {}, half_of(sums[hop % 2].part(1), p.key), add});
      begun_q[p.query] = begun_k[p.key] = true;
    }
    if (ctx.planning) continue;
    // The next hop's keys, which this hop's work has covered; their gradients come while they are worked on.
    ring.arrived(ctx);
    ring.pass(ctx, sums[hop % 2].bytes(), sums[(hop + 1) % 2].bytes());
  }
  if (!ctx.planning) ring.arrived(ctx);
  const Message& home = sums[ring.size() % 2];
  ring_store(ctx, {d_q, {}, d.q});
  ring_store(ctx, {home.part(0), sparse ? state.k.indices : Tensor{}, d.k});
  ring_store(ctx, {home.part(1), {}, d.v});
}

RingBytes ring_bytes_a_hop(const AttentionConfig& config, const AttentionDims& dims, DType dtype, double tokens) {
  const double element = static_cast<double>(size_of(dtype)), values = static_cast<double>(dims.Dv),
               heads = tokens * static_cast<double>(dims.G);
  const bool sparse = config.type == "sfa";
  const double features = static_cast<double>(sparse ? config.k_k : dims.Dqk);
  return {.forward = heads * (features * (element + (sparse ? 1 : 0)) + values * element),
          .backward_gradients = heads * (features + values) * 4};
}

}  // namespace sfa
