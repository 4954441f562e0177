#include "tokenizer/tokenizer.h"

#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "core/error.h"
#include "tokenizer/bpe_files.h"
#include "tokenizer/byte_tokenizer.h"

namespace sfa {

std::string_view Tokenizer::token_bytes(std::uint32_t id) const {
  require(id < vocab_size(), "token id {} is not in the vocabulary of {} ({} ids)", id, name_, vocab_size());
  return std::string_view(text_).substr(offsets_[id], offsets_[id + 1] - offsets_[id]);
}

std::string Tokenizer::decode(std::span<const std::uint32_t> ids) const {
  std::string text;
  for (const std::uint32_t id : ids) text += token_bytes(id);
  return text;
}

void Tokenizer::set_vocabulary(std::string name, const std::vector<std::string>& tokens, std::uint32_t end_of_text,
                               std::string_view hashed_rules) {
  name_ = std::move(name);
  end_of_text_ = end_of_text;
  text_.clear();
  offsets_.assign(1, 0);
  for (const std::string& token : tokens) {
    text_ += token;
    offsets_.push_back(static_cast<std::uint32_t>(text_.size()));
  }
  XXH64_hash_t hash = XXH3_64bits(hashed_rules.data(), hashed_rules.size());
  hash = XXH3_64bits_withSeed(offsets_.data(), offsets_.size() * sizeof(offsets_[0]), hash + end_of_text);
  hash = XXH3_64bits_withSeed(text_.data(), text_.size(), hash);
  hash_ = fmt::format("{:016x}", hash);
}

namespace {
namespace fs = std::filesystem;

std::unique_ptr<Tokenizer> bpe(BpeDefinition definition, const std::string& spec) {
  definition.name = spec;
  return std::make_unique<BpeTokenizer>(std::move(definition));
}

std::string beside(const std::string& file, const char* name) {
  return (fs::path(file).parent_path() / name).string();
}
std::string inside(const std::string& folder, const char* name) {
  return (fs::path(folder) / name).string();
}

// The one *.tiktoken file of a folder; empty when there is none, or more than one.
std::string tiktoken_in(const std::string& folder) {
  std::string found;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() != ".tiktoken") continue;
    if (!found.empty()) return "";
    found = it->path().string();
  }
  return found;
}

// One row a kind of tokenizer: how to recognise it, how to load it. The first row that matches is taken.
struct Kind {
  bool (*matches)(const std::string& spec);
  std::unique_ptr<Tokenizer> (*load)(const std::string& spec);
};

constexpr std::array kKinds{
    Kind{[](const std::string& spec) { return spec == "bytes"; },
         [](const std::string&) -> std::unique_ptr<Tokenizer> { return std::make_unique<ByteTokenizer>(); }},
    Kind{[](const std::string& spec) { return fs::exists(inside(spec, "tokenizer.json")); },
         [](const std::string& spec) { return bpe(read_tokenizer_json(inside(spec, "tokenizer.json")), spec); }},
    Kind{[](const std::string& spec) { return fs::exists(inside(spec, "vocab.json")); },
         [](const std::string& spec) {
           return bpe(read_gpt2_files(inside(spec, "vocab.json"), inside(spec, "merges.txt")), spec);
         }},
    Kind{[](const std::string& spec) { return fs::path(spec).filename() == "vocab.json"; },
         [](const std::string& spec) { return bpe(read_gpt2_files(spec, beside(spec, "merges.txt")), spec); }},
    Kind{[](const std::string& spec) { return spec.ends_with(".json"); },
         [](const std::string& spec) { return bpe(read_tokenizer_json(spec), spec); }},
    Kind{[](const std::string& spec) { return spec.ends_with(".tiktoken"); },
         [](const std::string& spec) { return bpe(read_tiktoken(spec), spec); }},
    Kind{[](const std::string& spec) { return !tiktoken_in(spec).empty(); },
         [](const std::string& spec) { return bpe(read_tiktoken(tiktoken_in(spec)), spec); }},
};
}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& spec) {
  require(spec == "bytes" || fs::exists(spec), "tokenizer '{}' is neither 'bytes' nor a file or folder that exists",
          spec);
  for (const Kind& kind : kKinds)
    if (kind.matches(spec)) return kind.load(spec);
  fail(
      "tokenizer '{}' is of an unknown kind; known are 'bytes', tokenizer.json, vocab.json with merges.txt beside it, "
      "*.tiktoken, and a folder that holds one of them",
      spec);
}

std::unique_ptr<Tokenizer> find_tokenizer(const std::string& hash, const std::vector<std::string>& places,
                                          const std::string& advice) {
  std::string seen, before;
  for (const std::string& place : places) {
    if (place.empty() || place == before) continue;
    before = place;
    std::string what = "is not there";
    std::error_code error;
    if (place == "bytes" || fs::exists(place, error)) {
      try {
        auto tokenizer = load_tokenizer(place);
        if (hash.size() != tokenizer->hash().size() || hash == tokenizer->hash()) return tokenizer;
        what = "is another one";
      } catch (const Error& damaged) {
        what = damaged.what();
      }
    }
    seen += fmt::format("{}{} {}", seen.empty() ? "" : ", ", place, what);
  }
  fail("the tokenizer of the training data was not found ({}); {}", seen, advice);
}

bool same_ids(const Tokenizer& a, const Tokenizer& b) {
  const auto common = static_cast<std::uint32_t>(std::min(a.vocab_size(), b.vocab_size()));
  if (a.end_of_text() != b.end_of_text() || a.end_of_text() >= common) return false;
  std::vector<std::uint32_t> of_a, of_b;
  for (std::uint32_t id = 0; id < common; ++id) {
    if (a.token_bytes(id) != b.token_bytes(id)) return false;
    of_a.clear();
    of_b.clear();
    a.encode(a.token_bytes(id), of_a);  // a token is what the merges make of its bytes
    b.encode(a.token_bytes(id), of_b);
    if (of_a != of_b) return false;
  }
  for (const std::string_view text :
       {"Hello, world! It's 12345 o'clock; we'LL see, they've gone.", "a  b   c \t\n\n\n  \r\n x",
        "e\xcc\x81 \xc3\xa9 x", "    return x[i] + 3.14159;  // don't!!!\n",
        "\xe4\xbd\xa0\xe5\xa5\xbd \xf0\x9f\x98\x80\xf0\x9f\x9a\x80",
        "supercalifragilisticexpialidocious internationalization 2\xc2\xb2", "\xd0\x9f\xd1\x80\xd0\xb8 ...--- <a>"}) {
    a.encode(text, of_a);
    b.encode(text, of_b);
  }
  return of_a == of_b;
}

std::vector<std::string> tokenizer_files_in(const std::string& folder) {
  if (fs::exists(inside(folder, "tokenizer.json"))) return {inside(folder, "tokenizer.json")};
  if (fs::exists(inside(folder, "vocab.json"))) return {inside(folder, "vocab.json"), inside(folder, "merges.txt")};
  if (const std::string lone = tiktoken_in(folder); !lone.empty()) return {lone};
  return {};
}

std::vector<std::string> tokenizer_files(const std::string& spec) {
  if (spec == "bytes") return {};
  if (fs::is_directory(spec)) return tokenizer_files_in(spec);
  if (fs::path(spec).filename() == "vocab.json") return {spec, beside(spec, "merges.txt")};
  return {spec};
}

}  // namespace sfa
