#include "data/shard_writer.h"

#include <xxhash.h>

#include <filesystem>

#include "core/error.h"

namespace sfa {

struct TextHash::State {
  XXH3_state_t* xxh = XXH3_createState();
  ~State() { XXH3_freeState(xxh); }
};

TextHash::TextHash() : state_(std::make_unique<State>()) {
  XXH3_128bits_reset(state_->xxh);
}
TextHash::~TextHash() = default;
void TextHash::add(std::string_view text) {
  XXH3_128bits_update(state_->xxh, text.data(), text.size());
}

std::string TextHash::take() {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_->xxh);
  XXH3_128bits_reset(state_->xxh);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

ShardWriter::ShardWriter(ShardWriterOptions options, const Tokenizer& tokenizer)
    : options_(std::move(options)), tokenizer_(tokenizer) {
  const bool shards = options_.shard_tokens > 0;
  require(options_.shard_tokens >= 0, "--shard-tokens must not be negative, not {}", options_.shard_tokens);
  require(!options_.resume || shards, "--resume needs --shard-tokens: a single file is written at once or not at all");
  if (options_.resume) {
    while (std::filesystem::exists(path_of(before_.size()))) {
      const TokenFile file(path_of(before_.size()));
      const TokenFileInfo& info = file.info();
      require(info.tokenizer_hash == tokenizer.hash(),
              "{} was made with the tokenizer {}, not {}; --resume goes on with the same one", info.path,
              info.tokenizer_name, tokenizer.name());
      require(info.source_names == options_.sources,
              "{} was made from other inputs than those named; --resume goes on with the same ones in the same order",
              info.path);
      require(info.has_answers == options_.output.answers,
              "{} was made {} --answer-field; --resume goes on with the same one", info.path,
              info.has_answers ? "with" : "without");
      before_.push_back(info);
    }
  }
  const std::string next = path_of(before_.size());
  require(options_.output.force || !std::filesystem::exists(next), "{} exists already; give --force to replace it{}",
          next, shards ? ", or --resume to go on behind the shards that are there" : "");
  open_next();  // finds a folder that cannot be written now rather than after the first shard's work
}

std::string ShardWriter::path_of(std::size_t index) const {
  if (options_.shard_tokens == 0) return options_.output.path;
  const std::filesystem::path path(options_.output.path);
  const std::string name = fmt::format("{}_{:05}{}", path.stem().string(), index, path.extension().string());
  return (path.parent_path() / name).string();
}

void ShardWriter::open_next() {
  TokenWriterOptions output = options_.output;
  output.path = path_of(before_.size() + written_.size());
  writer_ = std::make_unique<TokenWriter>(output, tokenizer_);
}

void ShardWriter::close() {
  closed_tokens_ += writer_->tokens();
  written_.push_back(writer_->finish(options_.sources, hash_.take()));
  writer_.reset();
}

void ShardWriter::begin_document() {
  if (options_.shard_tokens > 0 && writer_ != nullptr && writer_->tokens() >= options_.shard_tokens) close();
  if (writer_ == nullptr) open_next();
  writer_->begin_document();
}

void ShardWriter::append(std::string_view text, std::span<const std::uint32_t> ids, bool answer) {
  hash_.add(text);
  writer_->append(ids, answer);
}

std::vector<TokenFileInfo> ShardWriter::finish() {
  if (writer_->tokens() > 0 || before_.empty()) close();
  // Shards of an earlier, longer run would be read together with the new ones.
  if (options_.shard_tokens > 0 && options_.output.force)
    for (std::size_t i = before_.size() + written_.size(); std::filesystem::remove(path_of(i)); ++i) continue;
  return std::move(written_);
}

}  // namespace sfa
