// The synthetic needle-in-a-haystack task of arXiv 2603.22300, 4.2: a haystack of one repeated token with one needle
// token somewhere in it, which the last token of the sequence has to repeat. In bytes, so that a sequence is text:
//     <end of text> ######...###k#####...#### ? k          k: one of 62 letters and digits
// The paper gives no more than "repeated '#' with one needle token"; question and answer are ours.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/token_file.h"

namespace sfa {

constexpr int kNeedleValues = 62;
/// Needle and question with at least one '#' on either side of the needle, end of text, and the answer.
constexpr std::int64_t kShortestNeedleSequence = 6;

/// Sequence `index` of a stream: `length` tokens of the byte tokenizer, end of text first, answer last. `depth` in [0,
/// 1] says how far into the haystack the needle lies; below 0 it lies anywhere.
std::vector<std::uint32_t> needle_sequence(std::int64_t length, double depth, std::uint64_t seed, std::uint64_t index);

struct NeedleDataOptions {
  std::string path;
  std::int64_t seq_len = 8192;        // tokens of a training window
  std::vector<std::int64_t> lengths;  // of sequences; each must divide seq_len
  std::int64_t windows = 4096;
  double val_fraction = 0;
  std::uint64_t seed = 1;
  bool force = false;
};

/// Writes a token file of whole windows. Each window holds sequences of one length, drawn from `lengths`, and as many
/// as fill it; read it with data.shuffle: false (windows are random already) and data.document_mask: true.
TokenFileInfo write_needle_data(const NeedleDataOptions& options);

}  // namespace sfa
