#include "tokenizer/bpe_tokenizer.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "tokenizer/unicode.h"

namespace sfa {
namespace {
constexpr std::uint32_t kNoId = std::numeric_limits<std::uint32_t>::max();

// Recent words that are more than one token, with their ids; a thread's own, direct-mapped.
struct WordCache {
  static constexpr std::size_t kEntries = 1 << 15, kWord = 30, kIds = 8;
  struct Entry {
    std::uint64_t owner = 0;
    std::uint8_t length = 0, count = 0;
    std::array<char, kWord> word;
    std::array<std::uint32_t, kIds> ids;
  };
  std::vector<Entry> entries{kEntries};
};

std::string hashed_rules(const BpeDefinition& d) {
  std::string rules =
      fmt::format("bpe nfc={} whole={} {}\n{}\n", d.nfc, d.whole_words_first, d.pattern.size(), d.pattern);
  for (const BpeMerge& m : d.merges) {
    const std::array<std::uint32_t, 4> words{m.left, m.right, m.merged, m.rank};
    rules.append(reinterpret_cast<const char*>(words.data()), sizeof words);
  }
  return rules;
}
}  // namespace

std::array<std::uint32_t, 256> BpeTokenizer::byte_ids(const BpeDefinition& definition) {
  std::array<std::uint32_t, 256> ids;
  ids.fill(kNoId);
  std::vector<bool> special(definition.tokens.size());
  for (const std::uint32_t id : definition.special) special[id] = true;
  for (std::size_t id = 0; id < definition.tokens.size(); ++id)
    if (definition.tokens[id].size() == 1 && !special[id])
      ids[static_cast<unsigned char>(definition.tokens[id][0])] = static_cast<std::uint32_t>(id);
  for (std::size_t byte = 0; byte < 256; ++byte)
    require(ids[byte] != kNoId, "the tokenizer {} has no token for the byte 0x{:02x}, so it is not byte-level BPE",
            definition.name, byte);
  return ids;
}

BpeTokenizer::BpeTokenizer(BpeDefinition definition)
    : byte_ids_(byte_ids(definition)),
      merger_(byte_ids_, definition.merges),
      words_(definition.pattern, definition.name),
      nfc_(definition.nfc) {
  static std::atomic<std::uint64_t> count{0};
  serial_ = ++count;
  set_vocabulary(definition.name, definition.tokens, definition.end_of_text, hashed_rules(definition));
  index_words(definition);
}

void BpeTokenizer::index_words(const BpeDefinition& definition) {
  std::vector<bool> skip(definition.tokens.size());
  for (const std::uint32_t id : definition.special) skip[id] = true;
  word_slots_.assign(std::bit_ceil(2 * definition.tokens.size() + 2), {0, kNoId});
  const std::size_t mask = word_slots_.size() - 1;
  std::vector<std::uint32_t> ids;
  for (std::uint32_t id = 0; id < definition.tokens.size(); ++id) {
    const std::string& token = definition.tokens[id];
    if (token.empty() || skip[id]) continue;
    if (!definition.whole_words_first) {
      ids.clear();
      merger_.merge(token, ids);
      if (ids.size() != 1 || ids[0] != id) continue;
    }
    const std::uint64_t hash = XXH3_64bits(token.data(), token.size());
    std::size_t at = hash & mask;
    while (word_slots_[at].id != kNoId) at = (at + 1) & mask;
    word_slots_[at] = {static_cast<std::uint32_t>(hash >> 32), id};
  }
}

std::int64_t BpeTokenizer::whole_word(std::string_view word, std::uint64_t hash) const {
  const std::size_t mask = word_slots_.size() - 1;
  for (std::size_t at = hash & mask; word_slots_[at].id != kNoId; at = (at + 1) & mask)
    if (word_slots_[at].hash == static_cast<std::uint32_t>(hash >> 32) && token_bytes(word_slots_[at].id) == word)
      return word_slots_[at].id;
  return -1;
}

void BpeTokenizer::encode_word(std::string_view word, std::vector<std::uint32_t>& out) const {
  const std::uint64_t hash = XXH3_64bits(word.data(), word.size());
  if (const std::int64_t id = whole_word(word, hash); id >= 0) {
    out.push_back(static_cast<std::uint32_t>(id));
    return;
  }
  if (word.size() > WordCache::kWord) {
    merger_.merge(word, out);
    return;
  }
  thread_local WordCache cache;
  WordCache::Entry& entry = cache.entries[(hash >> 20) & (WordCache::kEntries - 1)];
  if (entry.owner == serial_ && entry.length == word.size() &&
      std::memcmp(entry.word.data(), word.data(), word.size()) == 0) {
    out.insert(out.end(), entry.ids.begin(), entry.ids.begin() + entry.count);
    return;
  }
  const std::size_t begin = out.size();
  merger_.merge(word, out);
  const std::size_t made = out.size() - begin;
  if (made > WordCache::kIds) return;
  entry.owner = serial_;
  entry.length = static_cast<std::uint8_t>(word.size());
  entry.count = static_cast<std::uint8_t>(made);
  word.copy(entry.word.data(), word.size());
  std::copy(out.begin() + static_cast<std::ptrdiff_t>(begin), out.end(), entry.ids.begin());
}

void BpeTokenizer::encode_valid(std::string_view text, std::vector<std::uint32_t>& out) const {
  std::string normalized;
  if (nfc_ && needs_nfc(text)) {
    normalized = normalize_nfc(text);
    text = normalized;
  }
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = words_.word_end(text, at);
    encode_word(text.substr(at, end - at), out);
    at = end;
  }
}

void BpeTokenizer::encode(std::string_view text, std::vector<std::uint32_t>& out) const {
  while (!text.empty()) {
    const std::size_t valid = valid_utf8_prefix(text);
    encode_valid(text.substr(0, valid), out);
    if (valid == text.size()) return;
    out.push_back(byte_ids_[static_cast<unsigned char>(text[valid])]);
    text.remove_prefix(valid + 1);
  }
}

std::size_t BpeTokenizer::safe_prefix(std::string_view text) const {
  if (!words_.ends_words_at_spaces()) return 0;
  const auto letter = [&](std::size_t i) {
    const int c = text[i] | 0x20;
    return c >= 'a' && c <= 'z';
  };
  for (std::size_t i = text.size(); i >= 3; --i) {
    const std::size_t space = i - 2;
    if (text[space] == ' ' && letter(space + 1) &&
        (letter(space - 1) || (text[space - 1] >= '0' && text[space - 1] <= '9')))
      return space;
  }
  return 0;
}

}  // namespace sfa
