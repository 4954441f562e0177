// Needle-in-a-haystack tasks over lengths and depths: how often a model gives back what was hidden.
//
//   synthetic  data/needle.h: repeated '#' with one needle token (arXiv 2603.22300, 4.2); for models trained on it,
//   byte
//              tokenizer
//   single     RULER (Hsieh et al. 2024) style: "One of the special magic numbers for {key} is: {value}." in noise, or
//   in a
//              text of the user's; one needle
//   multikey   the same with further needles of other keys
//   passkey    "The pass key is 12345. Remember it. 12345 is the pass key." in noise (Mohtashami and Jaggi 2023)
// A prompt ends where the answer begins, for base models. Correct: greedy decoding gives the answer, token by token as
// the tokenizer writes it.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "eval/scoring.h"

namespace sfa {

struct NeedleOptions {
  std::string kind = "synthetic";
  std::vector<std::int64_t> lengths;  // tokens of prompt and answer
  std::int64_t depths = 11;           // evenly from the beginning to the end; 1 = the middle
  std::int64_t samples = 10;          // a cell
  std::int64_t keys = 4;              // multikey: needles in all
  std::uint64_t seed = 1;
  std::string haystack;  // text to hide needles in, instead of noise
};

struct NeedlePrompt {
  std::string context, answer;  // answer with the space before it
};
/// A prompt of at most `length` tokens, filled up with haystack as far as it goes; not for `synthetic`. Throws Error
/// when not even the frame fits.
NeedlePrompt needle_prompt(const Tokenizer& tokenizer, const NeedleOptions& options, std::int64_t length, double depth,
                           std::uint64_t index);

struct NeedleCell {
  std::int64_t length = 0;
  double depth = 0;  // 0 = beginning
  std::int64_t correct = 0, samples = 0;
  [[nodiscard]] double accuracy() const { return static_cast<double>(correct) / static_cast<double>(samples); }
};

/// One cell a length and depth, lengths outermost.
std::vector<NeedleCell> find_needles(Context& ctx, Model& model, const Tokenizer& tokenizer,
                                     const NeedleOptions& options, const ScoreOptions& scoring);

/// Accuracy over all depths of a length.
double accuracy_at(const std::vector<NeedleCell>& cells, std::int64_t length);
/// Depths down, lengths across, shaded by accuracy.
std::string needle_map(const std::vector<NeedleCell>& cells);
nlohmann::ordered_json needle_json(const std::vector<NeedleCell>& cells);

}  // namespace sfa
