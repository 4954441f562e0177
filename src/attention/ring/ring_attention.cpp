#include "attention/ring/ring_attention.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "attention/ring/key_ring.h"
#include "attention/ring/ring_rows.h"
#include "ops/select/select.h"

namespace sfa {
namespace {

// Which of a rank's two chunks: one, or both of a single sequence, one after the other as if nothing lay between.
enum class Part : std::uint8_t { first, second, both };

// Those rows of a tensor [2B, c, ...]: [B, c, ...], or for both of B = 1 [1, 2c, ...].
Tensor rows_of(const Tensor& t, Part part) {
  if (t.empty()) return {};
  if (part != Part::both) return t.slice(0, part == Part::second ? t.dim(0) / 2 : 0, t.dim(0) / 2);
  require(t.dim(0) == 2 && t.stride[0] == t.dim(1) * t.stride[1], "internal error: two chunks of {} in one", t);
  Tensor joined = t.slice(0, 0, 1);
  joined.shape[1] *= 2;
  joined.stride[0] *= 2;
  return joined;
}
Queries rows_of(const Queries& q, Part part) {
  return {rows_of(q.dense, part), rows_of(q.values, part), rows_of(q.indices, part), rows_of(q.compressed, part),
          rows_of(q.metadata, part)};
}
Keys rows_of(const Keys& k, Part part) {
  return {rows_of(k.dense, part), rows_of(k.values, part), rows_of(k.indices, part), {}, rows_of(k.v, part), {}, {}};
}

Tensor like(Arena& arena, DType type, const Tensor& t) {
  return arena.take(type, {t.dim(0), t.dim(1), t.dim(2), t.dim(3)});
}

// One call of core: queries of here that see some key of where the keys of a hop come from.
struct Call {
  Part query, key;
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

// Whether calls take both chunks of a rank as one sequence where they can. Of several sequences the chunks do not lie
// one behind the other, nor do those of queries compressed in blocks; a window counts the tokens between.
bool joins_chunks(const AttentionState& s, const Ranges& whole) {
  return s.out.dim(0) == 2 && whole.window == 0 && s.q.compressed.empty();
}

// The calls of a hop, in the order in which they are computed.
std::vector<Call> calls_of(const Ranges& whole, int hop, std::int64_t c, bool joins) {
  const KeyRing& ring = *whole.ring;
  const int source = (ring.rank() - hop + ring.size()) % ring.size();
  std::vector<Call> calls;
  const auto add = [&](Part query, Part key, std::int64_t offset, int table) {
    calls.push_back({query, key, {.causal = true, .query_offset = offset, .window = whole.window, .first_key = {}}});
    const Tensor& f = whole.first_key;
    if (!f.empty()) calls.back().ranges.first_key = rows_of(f.slice(0, table, 1).view({f.dim(1), f.dim(2)}), query);
  };
  if (joins) {
    // Seen from rank r the first chunk of ranks before it lies before all queries and the second behind them; both
    // chunks of ranks behind it lie between its two.
    if (source == ring.rank())
      add(Part::both, Part::both, 0, 2 * ring.size() + source);
    else if (source < ring.rank())
      add(Part::both, Part::first, c, source);
    else
      add(Part::second, Part::both, 2 * c, 2 * ring.size() + source);
    return calls;
  }
  for (int query = 0; query < 2; ++query)
    for (int key = 0; key < 2; ++key) {
      const int from = ring.chunk(source, key);
      const std::int64_t apart = ring.chunk(ring.rank(), query) - from;
      // The nearest key is the last of its chunk, seen from the first query of its own.
      if (apart < 0 || (whole.window > 0 && apart * c - (c - 1) >= whole.window)) continue;
      add(static_cast<Part>(query), static_cast<Part>(key), apart * c, from);
    }
  return calls;
}

// Which chunks have been written to.
class Begun {
 public:
  /// Whether `part` has, and from now on it has. Of both chunks one is not begun alone.
  bool operator()(Part part) {
    const std::size_t one = part == Part::second ? 1 : 0;
    const bool before = chunks_[one];
    chunks_[one] = true;
    if (part == Part::both) chunks_[1] = true;
    return before;
  }

 private:
  std::array<bool, 2> chunks_{};
};

// What a call leaves of rows like `whole` [2B, c, ...], contiguous: memory for the largest call.
class CallRows {
 public:
  CallRows(Arena& scratch, DType type, const Tensor& whole, bool joins)
      : joins_(joins), rows_(like(scratch, type, joins ? whole : rows_of(whole, Part::first))) {}
  [[nodiscard]] Tensor of(Part part) const {
    return joins_ ? rows_of(rows_, part == Part::both ? Part::both : Part::first) : rows_;
  }

 private:
  bool joins_;
  Tensor rows_;
};

// Log-sum-exps [2B, H, c]; and where chunks are joined the same of both, [1, H, 2c], which is another order.
class LogSumExps {
 public:
  LogSumExps(Arena& scratch, const Tensor& lse, bool joins) : chunks_(lse) {
    if (joins) both_ = scratch.take(DType::f32, {1, lse.dim(1), 2 * lse.dim(2)});
  }
  /// Those of a part, in the order of both where there is one: not contiguous then.
  [[nodiscard]] Tensor running(Part part) const {
    if (both_.empty()) return rows_of(chunks_, part);
    return part == Part::both ? both_ : half(part == Part::second ? 1 : 0);
  }
  /// Contiguous ones, as a call of core reads them.
  [[nodiscard]] Tensor read(Part part) const { return part == Part::both ? both_ : rows_of(chunks_, part); }

  void from_chunks(Context& ctx) const {
    for (int i = 0; !both_.empty() && i < 2; ++i) ctx.copy_rows(rows(half(i)), rows(chunks_.slice(0, i, 1)));
  }
  void to_chunks(Context& ctx) const {
    for (int i = 0; !both_.empty() && i < 2; ++i) ctx.copy_rows(rows(chunks_.slice(0, i, 1)), rows(half(i)));
  }

 private:
  [[nodiscard]] Tensor half(int i) const { return both_.slice(2, i * chunks_.dim(2), chunks_.dim(2)); }
  // [1, H, c] as [1, H, 1, c].
  static Tensor rows(Tensor t) {
    t.rank = 4;
    t.shape[3] = t.shape[2], t.shape[2] = 1;
    t.stride[3] = 1, t.stride[2] = t.shape[3];
    return t;
  }

  Tensor chunks_, both_;
};

void require_halves(const AttentionState& s, const Ranges& r) {
  require(s.out.dim(0) % 2 == 0 && r.causal && r.query_offset == 0 &&
              (r.first_key.empty() || (r.first_key.rank == 3 && r.first_key.dim(0) == 3 * r.ring->size() &&
                                       r.first_key.dim(1) == s.out.dim(0) && r.first_key.dim(2) == s.out.dim(1))),
          "internal error: a ring of {} attends {} with first keys {}", r.ring->size(), s.out, r.first_key);
}

}  // namespace

void ring_core(Context& ctx, const Attention& attention, AttentionState& state, const Ranges& ranges, Arena& scratch) {
  require_halves(state, ranges);
  ArenaScope scope(scratch);
  KeyRing& ring = *ranges.ring;
  TravellingKeys keys(ctx, ring, state.k, scratch);
  const bool joins = joins_chunks(state, ranges), rounds = state.out.dtype != DType::f32;
  const Tensor sum = rounds ? like(scratch, DType::f32, state.out) : state.out;
  const CallRows parts(scratch, state.out.dtype, state.out, joins);
  const LogSumExps lses(scratch, state.lse, joins);
  const Tensor part_lses = scratch.take(DType::f32, {state.lse.numel() / (joins ? 1 : 2)});
  Begun begun;
  for (int hop = 0; hop < ring.size(); ++hop) {
    keys.pass_on(ctx, hop);
    const Keys here = keys.at(ctx, hop);
    for (const Call& call : calls_of(ranges, hop, state.out.dim(1), joins)) {
      const Tensor out = rows_of(sum, call.query), lse = lses.running(call.query), part = parts.of(call.query);
      const Tensor part_lse = part_lses.slice(0, 0, lse.numel()).view({lse.dim(0), lse.dim(1), lse.dim(2)});
      const bool first = !begun(call.query);
      const Queries q = rows_of(state.q, call.query);
      const Keys k = rows_of(here, call.key);
      attention.core(ctx, {q, k, call.ranges, first && !rounds ? out : part, first ? lse : part_lse, scratch});
      if (!first)
        attention_merge(ctx, out, lse, part, part_lse);
      else if (rounds)
        ring_collect(ctx, {.from = part, .indices = {}, .to = out});
    }
    if (hop + 1 < ring.size() && !ctx.planning) ring.arrived(ctx);
  }
  lses.to_chunks(ctx);
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
  const bool joins = joins_chunks(state, ranges);
  const CallRows parts_q(scratch, type, d.q, joins), parts_k(scratch, type, d.k, joins),
      parts_v(scratch, type, d.v, joins);
  const LogSumExps lses(scratch, state.lse, joins);
  lses.from_chunks(ctx);
  Begun begun_q, begun_k;
  for (int hop = 0; hop < ring.size(); ++hop) {
    keys.pass_on(ctx, hop);
    const Keys here = keys.at(ctx, hop);
    bool joined = ctx.planning || hop == 0;
    const auto join = [&] {
      if (!joined) ring.arrived(ctx);
      joined = true;
    };
    for (const Call& call : calls_of(ranges, hop, state.out.dim(1), joins)) {
      const Queries q = rows_of(state.q, call.query);
      const Keys k = rows_of(here, call.key);
      const Tensor part_q = parts_q.of(call.query), part_k = parts_k.of(call.key), part_v = parts_v.of(call.key);
      attention.core_backward(ctx, {q, k, call.ranges, rows_of(state.out, call.query), lses.read(call.query),
                                    rows_of(d_out, call.query), part_q, part_k, part_v, scratch});
      ring_collect(ctx, {part_q, {}, rows_of(d_q, call.query), begun_q(call.query)});
      join();  // gradients of these keys from the ranks before
      const bool add = begun_k(call.key) || hop > 0;
      ring_collect(ctx, {part_k, sparse ? k.indices : Tensor{}, rows_of(sums[hop % 2].part(0), call.key), add});
      ring_collect(ctx, {part_v, {}, rows_of(sums[hop % 2].part(1), call.key), add});
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
