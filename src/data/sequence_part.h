// Context parallelism: several ranks share every sequence, and each reads two chunks of it (attention/ring/key_ring.h).
#pragma once

#include <cstdint>

namespace sfa {

struct Batch;

/// Which of how many ranks that share a sequence.
struct SequencePart {
  int part = 0, parts = 1;
};

/// Throws Error with one sentence unless `parts` ranks can share sequences of seq_len tokens.
void require_parts(std::int64_t seq_len, int parts);

/// From whole rows [B, T] to those of one of several ranks, [2B, c] with c = T / (2 parts): chunk `part` of every row,
/// then chunk 2 parts - 1 - part of every row. first_key becomes [3 parts, 2B, c]: entry s counts from the first key of
/// chunk s, from 0 to c, entry 2 parts + r those of both chunks of part r (Ranges::first_key). num_targets is that of
/// the part; target_bytes is left alone.
void take_part(const Batch& whole, const SequencePart& of, Batch& part);

}  // namespace sfa
