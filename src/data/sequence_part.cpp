#include "data/sequence_part.h"

#include <algorithm>

#include "core/error.h"
#include "data/loader.h"

namespace sfa {
namespace {

// Chunk `part` of every row of [B, T], then chunk 2 parts - 1 - part.
void copy_chunks(const std::vector<std::int32_t>& from, std::int64_t T, const SequencePart& of,
                 std::vector<std::int32_t>& to) {
  const std::int64_t c = T / (2 * of.parts);
  to.clear();
  for (const int chunk : {of.part, 2 * of.parts - 1 - of.part})
    for (auto row = from.begin(); row != from.end(); row += T)
      to.insert(to.end(), row + chunk * c, row + (chunk + 1) * c);
}

}  // namespace

void require_parts(std::int64_t seq_len, int parts) {
  require(parts == 1 || seq_len % (2 * parts) == 0,
          "data.seq_len: {} tokens can't be cut into the {} equal chunks that dist.context_parallel={} needs", seq_len,
          2 * parts, parts);
}

void take_part(const Batch& whole, const SequencePart& of, Batch& part) {
  require_parts(whole.T, of.parts);
  const std::int64_t T = whole.T;
  const auto c = static_cast<std::int32_t>(T / (2 * of.parts));
  part.B = 2 * whole.B;
  part.T = c;
  part.first_sample = whole.first_sample;
  part.target_bytes = whole.target_bytes;
  part.step_targets = whole.step_targets;
  copy_chunks(whole.tokens, T, of, part.tokens);
  copy_chunks(whole.targets, T, of, part.targets);
  part.num_targets = std::count_if(part.targets.begin(), part.targets.end(), [](std::int32_t t) { return t >= 0; });
  part.first_key.clear();
  if (whole.first_key.empty()) return;
  std::vector<std::int32_t> own;
  copy_chunks(whole.first_key, T, of, own);
  for (std::int32_t s = 0; s < 2 * of.parts; ++s)
    for (const std::int32_t key : own) part.first_key.push_back(std::clamp(key - s * c, 0, c));
  for (std::int32_t r = 0; r < of.parts; ++r)
    for (const std::int32_t key : own)
      part.first_key.push_back(std::clamp(key - r * c, 0, c) + std::clamp(key - (2 * of.parts - 1 - r) * c, 0, c));
}

}  // namespace sfa
