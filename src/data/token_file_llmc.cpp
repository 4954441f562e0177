// llm.c's token shards (.bin): 256 int32 of header [magic, version, tokens, 0 ...], then the tokens.
//   magic 20240520, version 1: uint16, GPT-2's vocabulary
//   magic 20240801, version 7: uint32; the file does not say which vocabulary, Qwen's is assumed
// They carry no checksums, no document starts (end-of-text ids are looked for instead) and no validation part.
#include <algorithm>
#include <array>
#include <cstdint>

#include "core/error.h"
#include "data/token_file.h"

namespace sfa {
namespace {
struct Kind {
  std::int32_t magic, version;
  int token_bytes;
  std::int64_t vocab_size, end_of_text;
  const char* tokenizer;
};
constexpr std::array kKinds{Kind{20240520, 1, 2, 50257, 50256, "gpt2 (llm.c)"},
                            Kind{20240801, 7, 4, 151936, 151643, "qwen (llm.c)"}};
constexpr std::uint64_t kHeaderBytes = 256 * 4;

const Kind* kind_of(std::int32_t magic) {
  for (const Kind& kind : kKinds)
    if (kind.magic == magic) return &kind;
  return nullptr;
}
}  // namespace

bool TokenFile::open_llmc() {
  std::array<std::int32_t, 3> head{};
  if (file_.size() < sizeof head) return false;
  file_.read_at(0, head.data(), sizeof head);
  const Kind* kind = kind_of(head[0]);
  if (kind == nullptr) return false;
  const std::string& path = info_.path;
  require(head[1] == kind->version, "{} is a token file of llm.c (magic {}) of version {}; version {} can be read",
          path, head[0], head[1], kind->version);
  require(head[2] > 0, "{} holds no tokens", path);
  const std::uint64_t need =
      kHeaderBytes + static_cast<std::uint64_t>(head[2]) * static_cast<std::uint64_t>(kind->token_bytes);
  require(file_.size() >= need, "{} is truncated: {} tokens of {} bytes and the header need {} bytes, the file has {}",
          path, head[2], kind->token_bytes, need, file_.size());
  require(file_.size() == need, "{} is damaged: its header promises {} tokens, {} bytes in all, but the file has {}",
          path, head[2], need, file_.size());
  info_.tokenizer_name = info_.tokenizer_hash = kind->tokenizer;
  info_.tool_version = "llm.c";
  info_.vocab_size = kind->vocab_size;
  info_.end_of_text = kind->end_of_text;
  info_.total_tokens = info_.val_start = head[2];
  info_.num_documents = -1;
  info_.token_bytes = kind->token_bytes;
  offset_ = kHeaderBytes;
  return true;
}

std::vector<std::int64_t> TokenFile::scan_document_starts() const {
  std::vector<std::int64_t> starts;
  std::vector<std::int32_t> ids(1 << 16);
  for (std::int64_t at = 0; at < info_.total_tokens; at += static_cast<std::int64_t>(ids.size())) {
    ids.resize(static_cast<std::size_t>(std::min<std::int64_t>(1 << 16, info_.total_tokens - at)));
    read(at, ids);
    for (std::size_t i = 0; i < ids.size(); ++i)
      if (ids[i] == info_.end_of_text) starts.push_back(at + static_cast<std::int64_t>(i));
  }
  return starts;
}

}  // namespace sfa
