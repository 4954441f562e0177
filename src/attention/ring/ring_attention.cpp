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
  return {half_of(k.dense, half), half_of(k.values, half), half_of(k.indices, half), half_of(k.v, half), {}};
}

Tensor like(Arena& arena, DType type, const Tensor& t) {
  return arena.take(type, {t.dim(0), t.dim(1), t.dim(2), t.dim(3)});
}

// A query chunk that sees some key of a key chunk, as halves of the rows of here and of where the keys come from.
struct Pair {
  int query, key;
  Ranges ranges;
};

// The keys of a hop as they pass: own ones first, then those that have arrived, in two places by turns.
class TravellingKeys {
 public:
  TravellingKeys(Context& ctx, KeyRing& ring, const Keys& own, Arena& scratch) : ring_(ring), own_(own) {
    places_[0] = own;
    const auto pack = [&](Tensor& part) {
      if (part.empty() || part.contiguous()) return;
      const Tensor packed = like(scratch, part.dtype, part);
      ctx.copy_rows(packed, part);
      part = packed;
    };
    if (sparse()) places_[0].dense = {};
    for (Tensor* part : {&places_[0].dense, &places_[0].v}) pack(*part);
    const auto same = [&](const Tensor& t) { return t.empty() ? Tensor{} : like(scratch, t.dtype, t); };
    const Keys& o = places_[0];
    for (int i = 1; i < std::min(3, ring.size()); ++i)
      places_[i] = {same(o.dense), same(o.values), same(o.indices), same(o.v), {}};
    if (sparse() && !own.dense.empty()) rows_ = like(scratch, own.dense.dtype, own.dense);
  }

  /// Queues the passing on of hop's keys, unless they are the last.
  void pass_on(Context& ctx, int hop) {
    if (hop + 1 == ring_.size()) return;
    const Keys &out = place(hop), &in = place(hop + 1);
    for (const auto& [from, to] : {std::pair{out.dense, in.dense}, std::pair{out.values, in.values},
                                   std::pair{out.indices, in.indices}, std::pair{out.v, in.v}})
      if (!from.empty() && !ctx.planning) ring_.pass(ctx, from, to);
  }

  /// What core reads at a hop. Where it reads sfa's keys as full-width rows, these are made.
  Keys at(Context& ctx, int hop) {
    if (hop == 0) return own_;
    Keys keys = place(hop);
    if (rows_.empty()) return keys;
    select_expand(ctx, keys.values, keys.indices, rows_);
    keys.dense = rows_;
    return keys;
  }

 private:
  [[nodiscard]] bool sparse() const { return !own_.values.empty(); }
  [[nodiscard]] const Keys& place(int hop) const { return places_[hop == 0 ? 0 : 1 + (hop - 1) % 2]; }

  KeyRing& ring_;
  Keys own_;
  Keys places_[3];
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

// Gradients of a hop's keys and values, in two places by turns: what has added up on the way here.
struct KeyGradients {
  Tensor k[2], v[2];
};

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
  KeyGradients sums;
  for (int i = 0; i < 2; ++i) {
    sums.k[i] = like(scratch, DType::f32, sparse ? state.k.values : d.k);
    sums.v[i] = like(scratch, DType::f32, d.v);
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
      ring_collect(ctx, {part_k, sparse ? k.indices : Tensor{}, half_of(sums.k[hop % 2], p.key), add});
      ring_collect(ctx, {part_v, {}, half_of(sums.v[hop % 2], p.key), add});
      begun_q[p.query] = begun_k[p.key] = true;
    }
    if (ctx.planning) continue;
    // The next hop's keys, which this hop's work has covered; their gradients come while they are worked on.
    ring.arrived(ctx);
    ring.pass(ctx, sums.k[hop % 2], sums.k[(hop + 1) % 2]);
    ring.pass(ctx, sums.v[hop % 2], sums.v[(hop + 1) % 2]);
  }
  if (!ctx.planning) ring.arrived(ctx);
  const int home = ring.size() % 2;
  ring_store(ctx, {d_q, {}, d.q});
  ring_store(ctx, {sums.k[home], sparse ? state.k.indices : Tensor{}, d.k});
  ring_store(ctx, {sums.v[home], {}, d.v});
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
