#include "tokenizer/bpe_files.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <unordered_map>

#include "core/error.h"
#include "core/file.h"

namespace sfa {
namespace {
using nlohmann::json;

constexpr std::size_t kMostIds = std::size_t{1} << 22;

std::string read_whole(const std::string& path) {
  const File file = File::open_to_read(path);
  std::string text(file.size(), '\0');
  file.read_at(0, text.data(), text.size());
  require(!text.empty(), "the tokenizer file {} is empty", path);
  return text;
}

json read_json(const std::string& path) {
  json parsed = json::parse(read_whole(path), nullptr, false);
  require(!parsed.is_discarded() && parsed.is_object(), "the tokenizer file {} is not a JSON object", path);
  return parsed;
}

// GPT-2 writes each byte as one printable character: itself when it is printable in Latin-1, U+0100 + n otherwise.
std::array<std::uint32_t, 256> make_alphabet() {
  std::array<std::uint32_t, 256> characters{};
  std::uint32_t next = 256;
  for (std::uint32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    characters[b] = printable ? b : next++;
  }
  return characters;
}

void append_utf8(std::string& out, std::uint32_t c) {  // c < 0x800 here
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else {
    out += static_cast<char>(0xC0 | (c >> 6));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

using Ids = std::unordered_map<std::string, std::uint32_t>;  // by the token's bytes

void put_token(BpeDefinition& d, const std::string& path, std::int64_t id, std::string bytes) {
  require(id >= 0 && id < static_cast<std::int64_t>(kMostIds), "{}: a token has the id {}, which is out of range", path,
          id);
  const auto at = static_cast<std::size_t>(id);
  if (d.tokens.size() <= at) d.tokens.resize(at + 1);
  require(d.tokens[at].empty(), "{}: two tokens have the id {}", path, id);
  d.tokens[at] = std::move(bytes);
}

// token -> id of a JSON object; tokens in GPT-2's alphabet.
Ids read_vocabulary(BpeDefinition& d, const std::string& path, const json& vocabulary) {
  require(vocabulary.is_object() && !vocabulary.empty(), "{}: the vocabulary is not a JSON object of token and id",
          path);
  Ids ids;
  for (const auto& [token, id] : vocabulary.items()) {
    require(id.is_number_integer(), "{}: the id of the token '{}' is not a number", path, token);
    std::string bytes = bytes_of_gpt2_characters(token, path);
    require(!bytes.empty(), "{}: the vocabulary has an empty token", path);
    put_token(d, path, id.get<std::int64_t>(), bytes);
    ids.emplace(std::move(bytes), id.get<std::uint32_t>());
  }
  return ids;
}

void add_merge(BpeDefinition& d, const Ids& ids, const std::string& where, const std::string& left,
               const std::string& right) {
  const auto find = [&](const std::string& bytes, const char* what) {
    const auto found = ids.find(bytes);
    require(found != ids.end(), "{}: merge {} needs the token '{}' ({}), which the vocabulary lacks", where,
            d.merges.size() + 1, gpt2_characters_of_bytes(bytes), what);
    return found->second;
  };
  const std::string a = bytes_of_gpt2_characters(left, where), b = bytes_of_gpt2_characters(right, where);
  d.merges.push_back({find(a, "its left part"), find(b, "its right part"), find(a + b, "its result"),
                      static_cast<std::uint32_t>(d.merges.size())});
}

void find_end_of_text(BpeDefinition& d, const std::string& path) {
  for (const char* name : {"<|endoftext|>", "<|end_of_text|>", "<|end|>", "</s>", "<eos>"}) {
    const auto found = std::find(d.tokens.begin(), d.tokens.end(), name);
    if (found == d.tokens.end()) continue;
    d.end_of_text = static_cast<std::uint32_t>(found - d.tokens.begin());
    if (std::find(d.special.begin(), d.special.end(), d.end_of_text) == d.special.end())
      d.special.push_back(d.end_of_text);
    return;
  }
  fail("{} has no end-of-text token (such as <|endoftext|>), which stands between documents", path);
}

// What is absent, null, false, "" or 0 asks for nothing.
bool asks_for(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return false;
  return *found != json(false) && *found != json("") && *found != json(0) && *found != json(0.0);
}

std::string type_of(const json& node) {
  if (!node.is_object()) return "";
  const auto found = node.find("type");
  return found != node.end() && found->is_string() ? found->get<std::string>() : "";
}

void read_normalizer(BpeDefinition& d, const std::string& path, const json& node) {
  if (node.is_null()) return;
  const std::string type = type_of(node);
  if (type == "NFC") {
    d.nfc = true;
  } else if (type == "Sequence" && node.contains("normalizers") && node["normalizers"].is_array()) {
    for (const json& part : node["normalizers"]) read_normalizer(d, path, part);
  } else {
    fail("{}: the normalizer '{}' is not supported; NFC is", path, type);
  }
}

void read_pre_tokenizer(BpeDefinition& d, const std::string& path, const json& node) {
  const std::string type = type_of(node);
  if (type == "Sequence" && node.contains("pretokenizers") && node["pretokenizers"].is_array()) {
    for (const json& part : node["pretokenizers"]) read_pre_tokenizer(d, path, part);
  } else if (type == "ByteLevel") {
    require(!asks_for(node, "add_prefix_space"), "{}: add_prefix_space is not supported", path);
    const auto regex = node.find("use_regex");  // absent in old files, where it is on
    if (regex != node.end() && *regex == json(false)) return;
    require(d.pattern.empty(), "{}: two patterns in a row are not supported", path);
    d.pattern = kGpt2Pattern;
  } else if (type == "Split") {
    const auto pattern = node.find("pattern");
    require(pattern != node.end() && pattern->is_object() && pattern->contains("Regex") &&
                (*pattern)["Regex"].is_string() && node.value("behavior", "") == "Isolated" &&
                !asks_for(node, "invert"),
            "{}: only a Split by a Regex with the behavior Isolated is supported", path);
    require(d.pattern.empty(), "{}: two patterns in a row are not supported", path);
    d.pattern = (*pattern)["Regex"].get<std::string>();
  } else {
    fail("{}: the pre-tokenizer '{}' is not supported; ByteLevel and Split are", path, type);
  }
}

void read_json_merges(BpeDefinition& d, const Ids& ids, const std::string& path, const json& merges) {
  require(merges.is_array(), "{}: model.merges is not a list", path);
  for (const json& merge : merges) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      add_merge(d, ids, path, merge[0].get<std::string>(), merge[1].get<std::string>());
      continue;
    }
    require(merge.is_string(), "{}: merge {} is neither a string nor a pair of strings", path, d.merges.size() + 1);
    const auto text = merge.get<std::string>();
    const std::size_t space = text.find(' ');
    require(space != std::string::npos, "{}: merge {} ('{}') has no space between its parts", path, d.merges.size() + 1,
            text);
    add_merge(d, ids, path, text.substr(0, space), text.substr(space + 1));
  }
}

void read_added_tokens(BpeDefinition& d, const std::string& path, const json& added) {
  if (added.is_null()) return;
  require(added.is_array(), "{}: added_tokens is not a list", path);
  for (const json& token : added) {
    require(token.is_object() && token.contains("id") && token["id"].is_number_integer() && token.contains("content") &&
                token["content"].is_string(),
            "{}: an added token lacks its id or content", path);
    const auto id = token["id"].get<std::int64_t>();
    const auto content = token["content"].get<std::string>();
    const bool there = id >= 0 && id < static_cast<std::int64_t>(d.tokens.size()) &&
                       !d.tokens[static_cast<std::size_t>(id)].empty();  // GPT-2 lists it in the vocabulary, too
    if (there)
      d.tokens[static_cast<std::size_t>(id)] = content;
    else
      put_token(d, path, id, content);
    d.special.push_back(static_cast<std::uint32_t>(id));
  }
}

int base64_value(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  return c == '+' ? 62 : c == '/' ? 63 : -1;
}

bool decode_base64(std::string_view text, std::string& out) {
  out.clear();
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const int value = base64_value(c);
    if (value < 0) return false;
    bits = (bits << 6) | static_cast<std::uint32_t>(value);
    if ((count += 6) >= 8) out += static_cast<char>((bits >> (count -= 8)) & 0xFF);
  }
  return !out.empty();
}

// tiktoken merges any two neighbours whose joined bytes are a token, lowest rank first: every split of a token into two
// tokens is a merge with the token's rank.
void add_all_splits(BpeDefinition& d) {
  std::unordered_map<std::string_view, std::uint32_t> ids;
  for (std::uint32_t id = 0; id < d.tokens.size(); ++id)
    if (!d.tokens[id].empty()) ids.emplace(d.tokens[id], id);
  for (std::uint32_t id = 0; id < d.tokens.size(); ++id) {
    const std::string_view token = d.tokens[id];
    for (std::size_t cut = 1; cut < token.size(); ++cut) {
      const auto left = ids.find(token.substr(0, cut));
      if (left == ids.end()) continue;
      const auto right = ids.find(token.substr(cut));
      if (right != ids.end()) d.merges.push_back({left->second, right->second, id, id});
    }
  }
}

struct TiktokenKind {
  std::size_t ranks;
  const std::string_view* pattern;
  bool nfc;
  std::vector<const char*> special;  // the ids after the ranks; the first is end of text
};
}  // namespace

std::string bytes_of_gpt2_characters(const std::string& token, const std::string& where) {
  static const std::unordered_map<std::uint32_t, char> bytes = [] {
    std::unordered_map<std::uint32_t, char> map;
    const auto alphabet = make_alphabet();
    for (std::size_t b = 0; b < 256; ++b) map.emplace(alphabet[b], static_cast<char>(b));
    return map;
  }();
  std::string out;
  for (std::size_t i = 0; i < token.size(); ++i) {
    std::uint32_t c = static_cast<unsigned char>(token[i]);
    if (c >= 0xC0 && c < 0xE0 && i + 1 < token.size())
      c = ((c & 0x1F) << 6) | (static_cast<unsigned char>(token[++i]) & 0x3F);
    const auto found = bytes.find(c);
    require(found != bytes.end(),
            "{}: the token '{}' is not written in GPT-2's byte alphabet, so this is not byte-level BPE", where, token);
    out += found->second;
  }
  return out;
}

std::string gpt2_characters_of_bytes(std::string_view bytes) {
  static const auto alphabet = make_alphabet();
  std::string out;
  for (const char byte : bytes) append_utf8(out, alphabet[static_cast<unsigned char>(byte)]);
  return out;
}

BpeDefinition read_gpt2_files(const std::string& vocab_path, const std::string& merges_path) {
  BpeDefinition d;
  d.pattern = kGpt2Pattern;
  const Ids ids = read_vocabulary(d, vocab_path, read_json(vocab_path));
  std::istringstream lines(read_whole(merges_path));
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty() || line.starts_with("#version")) continue;
    const std::size_t space = line.find(' ');
    require(space != std::string::npos && line.find(' ', space + 1) == std::string::npos,
            "{}: the line '{}' is not a merge (two tokens with a space between)", merges_path, line);
    add_merge(d, ids, merges_path, line.substr(0, space), line.substr(space + 1));
  }
  find_end_of_text(d, vocab_path);
  return d;
}

BpeDefinition read_tokenizer_json(const std::string& path) {
  const json root = read_json(path);
  const auto part = [&root](const char* key) { return root.contains(key) ? root[key] : json(); };
  const json model = part("model");
  require(model.is_object() && model.contains("vocab") && model.contains("merges"),
          "{} has no BPE model (model.vocab and model.merges)", path);
  require(model.value("type", "BPE") == "BPE", "{}: the model is of type '{}'; BPE is supported", path,
          model.value("type", ""));
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"})
    require(!asks_for(model, key), "{}: model.{} is not supported", path, key);
  BpeDefinition d;
  d.whole_words_first = asks_for(model, "ignore_merges");
  const Ids ids = read_vocabulary(d, path, model["vocab"]);
  read_json_merges(d, ids, path, model["merges"]);
  read_normalizer(d, path, part("normalizer"));
  read_pre_tokenizer(d, path, part("pre_tokenizer"));
  require(!d.pattern.empty(), "{}: the pre-tokenizer has no pattern", path);
  read_added_tokens(d, path, part("added_tokens"));
  find_end_of_text(d, path);
  return d;
}

BpeDefinition read_tiktoken(const std::string& path) {
  static const std::vector<TiktokenKind> kinds{
      {50256, &kGpt2Pattern, false, {"<|endoftext|>"}},
      {151643, &kQwenPattern, true, {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}},
  };
  BpeDefinition d;
  std::istringstream lines(read_whole(path));
  std::string bytes;
  std::int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) continue;
    const std::size_t space = line.find(' ');
    const bool shaped = space != std::string::npos && line.size() - space - 1 <= 9 && line.size() > space + 1 &&
                        line.find_first_not_of("0123456789", space + 1) == std::string::npos;
    require(shaped && decode_base64(std::string_view(line).substr(0, space), bytes),
            "{}, line {}: not a base64 token and its rank", path, number);
    put_token(d, path, std::stoll(line.substr(space + 1)), bytes);
  }
  const auto kind =
      std::find_if(kinds.begin(), kinds.end(), [&](const TiktokenKind& k) { return k.ranks == d.tokens.size(); });
  require(
      kind != kinds.end(),
      "{} has {} ranks; a .tiktoken file does not say its pattern, and known are those of GPT-2 (50256 ranks) and Qwen "
      "(151643)",
      path, d.tokens.size());
  add_all_splits(d);
  d.pattern = *kind->pattern;
  d.nfc = kind->nfc;
  d.whole_words_first = true;
  d.end_of_text = static_cast<std::uint32_t>(d.tokens.size());
  for (const char* name : kind->special) {
    d.special.push_back(static_cast<std::uint32_t>(d.tokens.size()));
    d.tokens.emplace_back(name);
  }
  return d;
}

}  // namespace sfa
