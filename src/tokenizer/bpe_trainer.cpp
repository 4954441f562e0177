#include "tokenizer/bpe_trainer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <queue>
#include <utility>

#include "core/error.h"
#include "tokenizer/bpe_files.h"
#include "tokenizer/bpe_merger.h"
#include "tokenizer/unicode.h"

namespace sfa {
namespace {
using Pair = std::uint64_t;  // pair_of two ids

struct Word {
  std::vector<std::uint32_t> ids;
  std::int64_t count;
};

// The words' current tokens, how often each pair occurs, and where.
class State {
 public:
  explicit State(std::vector<Word> words) : words_(std::move(words)) {
    for (std::size_t w = 0; w < words_.size(); ++w)
      for (std::size_t i = 0; i + 1 < words_[w].ids.size(); ++i)
        change(pair_of(words_[w].ids[i], words_[w].ids[i + 1]), words_[w].count, w);
    for (const auto& [pair, count] : counts_) heap_.push({count, pair});
    grown_.clear();
  }

  /// The most frequent pair, which is then no longer a candidate; false when none is left.
  bool pop(Pair& pair) {
    while (!heap_.empty()) {
      const Candidate top = heap_.top();
      heap_.pop();
      const std::int64_t now = counts_.at(top.pair);
      if (now == top.count && now > 0) {
        pair = top.pair;
        return true;
      }
      if (now > 0 && now < top.count)
        heap_.push({now, top.pair});  // it has lost since; one that has gained was pushed again
    }
    return false;
  }

  void merge(Pair pair, std::uint32_t merged) {
    const auto left = static_cast<std::uint32_t>(pair >> 32), right = static_cast<std::uint32_t>(pair);
    for (const std::size_t w : std::exchange(where_[pair], {})) merge_in(w, left, right, merged);
    where_.erase(pair);
    counts_[pair] = 0;
    std::sort(grown_.begin(), grown_.end());
    grown_.erase(std::unique(grown_.begin(), grown_.end()), grown_.end());
    for (const Pair other : grown_)
      if (const std::int64_t count = counts_[other]; count > 0 && other != pair) heap_.push({count, other});
    grown_.clear();
  }

 private:
  struct Candidate {
    std::int64_t count;
    Pair pair;
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };

  void change(Pair pair, std::int64_t by, std::size_t word) {
    counts_[pair] += by;
    if (by <= 0) return;
    auto& places = where_[pair];
    if (places.empty() || places.back() != word) places.push_back(word);
    grown_.push_back(pair);
  }

  void merge_in(std::size_t w, std::uint32_t left, std::uint32_t right, std::uint32_t merged) {
    auto& ids = words_[w].ids;
    const std::int64_t count = words_[w].count;
    std::size_t to = 0;
    for (std::size_t from = 0; from < ids.size(); ++from, ++to) {
      if (ids[from] != left || from + 1 == ids.size() || ids[from + 1] != right) {
        ids[to] = ids[from];
        continue;
      }
      if (to > 0) {
        change(pair_of(ids[to - 1], left), -count, w);
        change(pair_of(ids[to - 1], merged), count, w);
      }
      if (from + 2 < ids.size()) {
        change(pair_of(right, ids[from + 2]), -count, w);
        change(pair_of(merged, ids[from + 2]), count, w);
      }
      ids[to] = merged;
      ++from;
    }
    ids.resize(to);
  }

  std::vector<Word> words_;
  std::unordered_map<Pair, std::int64_t> counts_;
  std::unordered_map<Pair, std::vector<std::size_t>> where_;
  std::vector<Pair> grown_;
  std::priority_queue<Candidate> heap_;
};
}  // namespace

BpeTrainer::BpeTrainer(std::string_view pattern, bool nfc)
    : pattern_(pattern), nfc_(nfc), words_(pattern, "training") {}

void BpeTrainer::add(std::string_view text) {
  bytes_ += text.size();
  while (!text.empty()) {
    const std::size_t valid = valid_utf8_prefix(text);
    std::string normalized;
    std::string_view part = text.substr(0, valid);
    if (nfc_ && needs_nfc(part)) part = normalized = normalize_nfc(part);
    for (std::size_t at = 0; at < part.size();) {
      const std::size_t end = words_.word_end(part, at);
      const std::string_view word = part.substr(at, end - at);
      if (const auto found = counts_.find(word); found != counts_.end())
        ++found->second;
      else
        counts_.emplace(word, 1);
      at = end;
    }
    text.remove_prefix(std::min(text.size(), valid + 1));
  }
}

BpeDefinition BpeTrainer::train(std::int64_t vocab_size) const {
  require(vocab_size >= 257 && vocab_size <= (1 << 22),
          "the vocabulary must have at least 257 ids (256 bytes and end of text) and at most 4194304, not {}",
          vocab_size);
  BpeDefinition d;
  d.pattern = pattern_;
  d.nfc = nfc_;
  std::vector<std::pair<std::string, char>> alphabet;  // in the order of GPT-2's characters
  for (int b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    alphabet.emplace_back(gpt2_characters_of_bytes({&byte, 1}), byte);
  }
  std::sort(alphabet.begin(), alphabet.end());
  std::unordered_map<std::string, std::uint32_t> ids;
  const auto id_of = [&](const std::string& bytes) {
    const auto [place, is_new] = ids.emplace(bytes, static_cast<std::uint32_t>(d.tokens.size()));
    if (is_new) d.tokens.push_back(bytes);
    return place->second;
  };
  for (const auto& [character, byte] : alphabet) id_of(std::string(1, byte));

  std::vector<Word> words;
  for (const auto& [text, count] : counts_) {
    Word& word = words.emplace_back(Word{{}, count});
    for (const char byte : text) word.ids.push_back(ids.at(std::string(1, byte)));
  }
  State state(std::move(words));
  Pair pair = 0;
  while (static_cast<std::int64_t>(d.tokens.size()) + 1 < vocab_size && state.pop(pair)) {
    const auto left = static_cast<std::uint32_t>(pair >> 32), right = static_cast<std::uint32_t>(pair);
    const std::uint32_t merged = id_of(d.tokens[left] + d.tokens[right]);
    d.merges.push_back({left, right, merged, static_cast<std::uint32_t>(d.merges.size())});
    state.merge(pair, merged);
  }
  d.end_of_text = static_cast<std::uint32_t>(d.tokens.size());
  d.special.push_back(d.end_of_text);
  d.tokens.emplace_back("<|endoftext|>");
  return d;
}

std::string tokenizer_json(const BpeDefinition& d) {
  using nlohmann::json;
  json vocabulary = json::object(), merges = json::array();
  for (std::size_t id = 0; id < d.tokens.size(); ++id)
    if (id != d.end_of_text) vocabulary[gpt2_characters_of_bytes(d.tokens[id])] = id;
  for (const BpeMerge& m : d.merges)
    merges.push_back({gpt2_characters_of_bytes(d.tokens[m.left]), gpt2_characters_of_bytes(d.tokens[m.right])});
  const bool gpt2 = d.pattern == kGpt2Pattern;
  const json byte_level{
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", gpt2}};
  const json split{{"type", "Split"}, {"pattern", {{"Regex", d.pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  const json end{{"id", d.end_of_text},  {"content", d.tokens[d.end_of_text]},
                 {"single_word", false}, {"lstrip", false},
                 {"rstrip", false},      {"normalized", false},
                 {"special", true}};
  json root;
  root["version"] = "1.0";
  root["truncation"] = nullptr;
  root["padding"] = nullptr;
  root["added_tokens"] = json::array({end});
  root["normalizer"] = d.nfc ? json{{"type", "NFC"}} : json(nullptr);
  root["pre_tokenizer"] =
      gpt2 ? byte_level : json{{"type", "Sequence"}, {"pretokenizers", json::array({split, byte_level})}};
  root["post_processor"] = nullptr;
  root["decoder"] = byte_level;
  root["model"] = json{{"type", "BPE"},
                       {"dropout", nullptr},
                       {"unk_token", nullptr},
                       {"continuing_subword_prefix", nullptr},
                       {"end_of_word_suffix", nullptr},
                       {"fuse_unk", false},
                       {"byte_fallback", false},
                       {"ignore_merges", false},
                       {"vocab", std::move(vocabulary)},
                       {"merges", std::move(merges)}};
  return root.dump(1) + "\n";
}

}  // namespace sfa
