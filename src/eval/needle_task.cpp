#include "eval/needle_task.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.h"
#include "core/rng.h"
#include "data/needle.h"

namespace sfa {
namespace {

constexpr std::uint32_t kPurposeNeedleText = 22;  // of core/rng.h's numbers; index = prompt

constexpr std::array kNoise{"The grass is green. ", "The sky is blue. ", "The sun is yellow. ", "Here we go. ",
                            "There and back again. "};
constexpr std::array kFirst{"amber", "brisk", "calm", "dusty", "eager",  "faint",  "gentle", "hollow",
                            "ivory", "jolly", "keen", "lunar", "mellow", "narrow", "olive",  "plain"};
constexpr std::array kSecond{"anchor", "basket", "candle", "desert", "engine", "forest", "garden",  "harbor",
                             "island", "jacket", "kettle", "ladder", "market", "needle", "orchard", "pocket"};

// Numbers of one prompt, drawn in a fixed order.
class Draw {
 public:
  Draw(std::uint64_t seed, std::uint64_t index) : seed_(seed), index_(index) {}
  std::uint32_t below(std::uint32_t n) { return philox(seed_, kPurposeNeedleText, index_, next_++)[0] % n; }
  std::string digits(int count) {
    std::string text(1, static_cast<char>('1' + below(9)));
    while (static_cast<int>(text.size()) < count) text += static_cast<char>('0' + below(10));
    return text;
  }

 private:
  std::uint64_t seed_, index_;
  std::uint32_t next_ = 0;
};

std::vector<std::string> distinct_keys(Draw& draw, std::int64_t count) {
  std::vector<std::string> keys;
  while (static_cast<std::int64_t>(keys.size()) < count) {
    const std::string first = kFirst[draw.below(kFirst.size())],
                      key = first + " " + kSecond[draw.below(kSecond.size())];
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
  }
  return keys;
}

// What stands around the haystack, and what is hidden in it.
struct Frame {
  std::string before, after, answer;
  std::vector<std::string> needles;  // the first is the one that is asked for
};

Frame passkey_frame(Draw& draw) {
  const std::string key = draw.digits(5);
  return {"There is an important pass key hidden in a lot of other text. Find it and remember it.\n",
          "\nWhat is the pass key? The pass key is",
          " " + key,
          {"The pass key is " + key + ". Remember it. " + key + " is the pass key. "}};
}

Frame numbers_frame(Draw& draw, std::int64_t count) {
  const std::vector<std::string> keys = distinct_keys(draw, count);
  Frame f;
  for (const std::string& key : keys) {
    const std::string value = draw.digits(7);
    f.needles.push_back("One of the special magic numbers for " + key + " is: " + value + ". ");
    if (f.answer.empty()) f.answer = " " + value;
  }
  f.before = "Special magic numbers are hidden in the following text. Remember them.\n";
  f.after = "\nWhat is the special magic number for " + keys.front() +
            " mentioned in the text? The special magic number for " + keys.front() + " mentioned in the text is";
  return f;
}

// Sentences to hide needles between: the noise over and over, or the user's text over and over, cut behind full stops.
std::vector<std::string> sentences_of(const std::string& haystack) {
  if (haystack.empty()) return {kNoise.begin(), kNoise.end()};
  std::vector<std::string> all;
  std::string one;
  for (const char c : haystack) {
    one += c;
    if ((c == ' ' || c == '\n') && one.size() > 1 &&
        std::string(".!?").find(one[one.size() - 2]) != std::string::npos) {
      all.push_back(one);
      one.clear();
    }
  }
  if (!one.empty()) all.push_back(one + " ");
  return all;
}

// The frame around `count` sentences, its needles in their places.
std::string assembled(const Frame& frame, const std::vector<std::string>& sentences, std::int64_t count, double depth,
                      const std::vector<double>& others) {
  std::vector<std::pair<std::int64_t, std::size_t>> places{{std::llround(depth * static_cast<double>(count)), 0}};
  for (std::size_t i = 1; i < frame.needles.size(); ++i)
    places.emplace_back(std::llround(others[i - 1] * static_cast<double>(count)), i);
  std::sort(places.begin(), places.end());
  std::string text = frame.before;
  auto next = places.begin();
  for (std::int64_t s = 0; s <= count; ++s) {
    for (; next != places.end() && next->first == s; ++next) text += frame.needles[next->second];
    if (s < count) text += sentences[static_cast<std::size_t>(s) % sentences.size()];
  }
  return text.erase(text.find_last_not_of(' ') + 1) + frame.after;
}

std::int64_t count_tokens(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<std::uint32_t> ids;
  tokenizer.encode(text, ids);
  return static_cast<std::int64_t>(ids.size());
}

double depth_of(std::int64_t number, std::int64_t depths) {
  return depths == 1 ? 0.5 : static_cast<double>(number) / static_cast<double>(depths - 1);
}

void check(const NeedleOptions& o, const Model& model) {
  require(o.depths >= 1 && o.samples >= 1, "--depths and --samples: must be at least 1");
  require(!o.lengths.empty(), "--lengths: at least one length is needed");
  require(o.keys >= 1 && o.keys <= 64, "--keys: from 1 to 64, got {}", o.keys);
  for (const std::int64_t length : o.lengths)
    require(length >= 2 && length <= model.config().max_position_embeddings,
            "--lengths: {} tokens; the model has {} positions", length, model.config().max_position_embeddings);
}

}  // namespace

NeedlePrompt needle_prompt(const Tokenizer& tokenizer, const NeedleOptions& o, std::int64_t length, double depth,
                           std::uint64_t index) {
  Draw draw(o.seed, index);
  const Frame frame =
      o.kind == "passkey" ? passkey_frame(draw) : numbers_frame(draw, o.kind == "multikey" ? o.keys : 1);
  const std::vector<std::string> sentences = sentences_of(o.haystack);
  std::vector<double> others;
  for (std::size_t i = 1; i < frame.needles.size(); ++i) others.push_back(static_cast<double>(draw.below(1001)) / 1000);
  const auto tokens = [&](std::int64_t count) {
    return count_tokens(tokenizer, assembled(frame, sentences, count, depth, others) + frame.answer);
  };
  require(tokens(0) <= length, "--lengths: {} tokens do not hold the question alone, which takes {}", length,
          tokens(0));
  // The most sentences that fit. A sentence is a token at least, so that `length` of them never do.
  std::int64_t fits = 0, too_many = length;
  while (too_many - fits > 1) {
    const std::int64_t middle = (fits + too_many) / 2;
    (tokens(middle) <= length ? fits : too_many) = middle;
  }
  return {assembled(frame, sentences, fits, depth, others), frame.answer};
}

std::vector<NeedleCell> find_needles(Context& ctx, Model& model, const Tokenizer& tokenizer, const NeedleOptions& o,
                                     const ScoreOptions& scoring) {
  check(o, model);
  require(o.kind != "synthetic" || tokenizer.name() == "bytes",
          "the synthetic task is one of bytes, the model's tokenizer is {}; see `sfa data needle`", tokenizer.name());
  std::vector<NeedleCell> cells;
  std::vector<ScoreRequest> requests;
  std::uint64_t index = 0;
  for (const std::int64_t length : o.lengths)
    for (std::int64_t d = 0; d < o.depths; ++d) {
      cells.push_back({length, depth_of(d, o.depths), 0, o.samples});
      for (std::int64_t s = 0; s < o.samples; ++s, ++index) {
        if (o.kind != "synthetic") {
          const NeedlePrompt p = needle_prompt(tokenizer, o, length, cells.back().depth, index);
          requests.push_back(encode_pair(tokenizer, p.context, p.answer));
          continue;
        }
        const std::vector<std::uint32_t> ids = needle_sequence(length, cells.back().depth, o.seed, index);
        requests.push_back({{ids.begin(), ids.end() - 1}, {static_cast<std::int32_t>(ids.back())}});
      }
    }
  const std::vector<Score> scores = score(ctx, model, requests, scoring);
  for (std::size_t i = 0; i < scores.size(); ++i)
    cells[i / static_cast<std::size_t>(o.samples)].correct += scores[i].greedy ? 1 : 0;
  return cells;
}

double accuracy_at(const std::vector<NeedleCell>& cells, std::int64_t length) {
  double correct = 0, samples = 0;
  for (const NeedleCell& c : cells) {
    if (c.length != length) continue;
    correct += static_cast<double>(c.correct);
    samples += static_cast<double>(c.samples);
  }
  return samples > 0 ? correct / samples : 0;
}

std::string needle_map(const std::vector<NeedleCell>& cells) {
  constexpr std::array kShades{" ", "░", "▒", "▓", "█"};
  std::vector<std::int64_t> lengths;
  std::vector<double> depths;
  for (const NeedleCell& c : cells) {
    if (lengths.empty() || lengths.back() != c.length) lengths.push_back(c.length);
    if (lengths.size() == 1) depths.push_back(c.depth);
  }
  std::string out = fmt::format("{:>6}", "depth");
  for (const std::int64_t length : lengths) out += fmt::format("{:>9}", length);
  out += "\n";
  for (std::size_t d = 0; d < depths.size(); ++d) {
    out += fmt::format("{:>4.0f} %", 100 * depths[d]);
    for (std::size_t l = 0; l < lengths.size(); ++l) {
      const double accuracy = cells[l * depths.size() + d].accuracy();
      const char* shade = kShades[static_cast<std::size_t>(std::llround(accuracy * (kShades.size() - 1)))];
      out += fmt::format("  {}{} {:>3.0f}", shade, shade, 100 * accuracy);
    }
    out += " \n";
  }
  out += fmt::format("{:>6}", "all");
  for (const std::int64_t length : lengths) out += fmt::format("{:>9.1f}", 100 * accuracy_at(cells, length));
  return out + "\n";
}

nlohmann::ordered_json needle_json(const std::vector<NeedleCell>& cells) {
  nlohmann::ordered_json by_length = nlohmann::ordered_json::array(), all = nlohmann::ordered_json::array();
  for (const NeedleCell& c : cells) {
    if (by_length.empty() || by_length.back()["length"] != c.length)
      by_length.push_back({{"length", c.length}, {"accuracy", accuracy_at(cells, c.length)}});
    all.push_back({{"length", c.length},
                   {"depth", c.depth},
                   {"correct", c.correct},
                   {"samples", c.samples},
                   {"accuracy", c.accuracy()}});
  }
  return {{"by_length", by_length}, {"cells", all}};
}

}  // namespace sfa
