// Times one layer's attention through the public interface: preparation (selection) and core, forward, backward or one
// step of decoding over a filled cache. With the projection that makes the packed rows in front, when asked for: an
// implementation may select features in it.
#pragma once

#include <cstdint>
#include <string>

#include "attention/attention.h"
#include "core/context.h"

namespace sfa {

struct SupportDump;

enum class AttentionOp : std::uint8_t { forward, backward, decode };

struct AttentionCase {
  AttentionOp op = AttentionOp::forward;
  AttentionConfig config;
  AttentionDims dims;
  std::int64_t B = 1;
  std::int64_t n = 1024;  // causal length; decode: keys in the cache, for one new token a sequence
  DType dtype = DType::f32;
  const SupportDump* supports = nullptr;  // null: normally distributed rows
  std::int64_t hidden = 0;                // forward: begin with the projection of so many features; 0: without
  int repetitions = 20;                   // fewer when they would take longer than about a second
  /// More than 1: what one of so many ranks that share the sequences computes (attention/ring), its part of the tokens;
  /// keys that other ranks would send are its own, copied.
  int context_parallel = 1;
};

/// Medians. Bytes and FLOPs are of one call; a multiply-add counts as two.
struct AttentionTiming {
  double ms = 0;             // of the whole call, selection (and with `hidden` the projection) included
  double projection_ms = 0;  // of the projection alone, measured apart
  double selection_ms = 0;   // of prepare() alone, measured apart; with `hidden` what it adds to the projection
  int repetitions = 0;
  double dense_flops = 0;     // what dense attention would need: causal half, n^2 / 2 pairs
  double executed_flops = 0;  // what this implementation multiplies, zeros included; over the same pairs
  double bytes = 0;           // compulsory traffic: operands once in, results once out
  double saved_bytes = 0;     // peak of the arena that lives until backward
  double scratch_bytes = 0;   // peak of the arena that layers share
  double cache_bytes = 0;     // decode: key/value cache
};

/// Throws Error when no implementation serves the case or memory is short.
AttentionTiming time_attention(Context& ctx, const AttentionCase& c);

}  // namespace sfa
