#include "data/needle.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/progress.h"
#include "core/rng.h"
#include "data/token_writer.h"
#include "tokenizer/byte_tokenizer.h"

namespace sfa {
namespace {

// Purposes of core/rng.h's numbers; index = sequence, or window.
constexpr std::uint32_t kPurposeNeedle = 20, kPurposeNeedleLength = 21;

constexpr char kValues[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
static_assert(sizeof kValues == kNeedleValues + 1);

}  // namespace

std::vector<std::uint32_t> needle_sequence(std::int64_t length, double depth, std::uint64_t seed, std::uint64_t index) {
  require(length >= kShortestNeedleSequence, "a sequence with a needle needs {} tokens at least, got {}",
          kShortestNeedleSequence, length);
  const auto random = philox(seed, kPurposeNeedle, index, 0);
  const std::uint32_t value = static_cast<unsigned char>(kValues[random[0] % kNeedleValues]);
  // Places 2 to length - 4: behind the first '#' and before the last.
  const std::int64_t places = length - 5;
  const std::int64_t place = depth < 0 ? static_cast<std::int64_t>(random[1] % static_cast<std::uint64_t>(places))
                                       : std::llround(std::min(depth, 1.0) * static_cast<double>(places - 1));
  std::vector<std::uint32_t> ids(static_cast<std::size_t>(length), '#');
  ids.front() = ByteTokenizer().end_of_text();
  ids[static_cast<std::size_t>(2 + place)] = value;
  ids[static_cast<std::size_t>(length - 2)] = '?';
  ids.back() = value;
  return ids;
}

TokenFileInfo write_needle_data(const NeedleDataOptions& options) {
  require(options.windows >= 1, "--windows: must be at least 1, got {}", options.windows);
  require(!options.lengths.empty(), "--lengths: at least one length is needed");
  for (const std::int64_t length : options.lengths)
    require(length >= kShortestNeedleSequence && options.seq_len % length == 0,
            "--lengths: {} tokens: must be at least {} and divide the window of {}", length, kShortestNeedleSequence,
            options.seq_len);
  const ByteTokenizer tokenizer;
  TokenWriter writer({.path = options.path,
                      .val_fraction = options.val_fraction,
                      .force = options.force,
                      .answers = true,
                      .answers_end = false},
                     tokenizer);
  Progress progress("needles", static_cast<std::uint64_t>(options.windows));
  std::uint64_t index = 0;
  for (std::int64_t w = 0; w < options.windows; ++w) {
    const auto random = philox(options.seed, kPurposeNeedleLength, static_cast<std::uint64_t>(w), 0);
    const std::int64_t length = options.lengths[random[0] % options.lengths.size()];
    for (std::int64_t i = 0; i < options.seq_len / length; ++i) {
      const std::vector<std::uint32_t> ids = needle_sequence(length, -1, options.seed, index++);
      writer.begin_document();
      writer.append({ids.begin() + 1, ids.end() - 1});
      writer.append({ids.end() - 1, ids.end()}, true);
    }
    progress.update(static_cast<std::uint64_t>(w + 1), "");
  }
  progress.finish();
  return writer.finish({"synthetic needles"}, "");
}

}  // namespace sfa
