// sfa data tokenize | info
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/commands.h"
#include "core/error.h"
#include "core/progress.h"
#include "data/token_file.h"
#include "data/tokenize.h"
#include "tokenizer/tokenizer.h"

namespace sfa::app {
namespace {

struct TokenizeArguments {
  std::string tokenizer = "bytes", format = "auto";
  TokenizeOptions options;
};

void run_tokenize(const TokenizeArguments& arguments) {
  TokenizeOptions options = arguments.options;
  options.source.format = text_format_from_name(arguments.format);
  options.show_progress = true;
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(arguments.tokenizer);
  const TokenizeResult result = tokenize(options, *tokenizer);
  const auto bytes = static_cast<double>(result.text_bytes);
  if (result.files.empty()) {
    fmt::print("{}: nothing was left to do\n", options.output.path);
    return;
  }
  std::int64_t tokens = 0, train = 0, documents = 0;
  for (const TokenFileInfo& info : result.files) {
    tokens += info.total_tokens;
    train += info.val_start;
    documents += info.num_documents;
  }
  const TokenFileInfo &first = result.files.front(), &last = result.files.back();
  const std::string names = result.files.size() == 1
                                ? first.path
                                : fmt::format("{} to {} ({} files)", first.path, last.path, result.files.size());
  fmt::print("{}: {} tokens ({} to train, {} to validate) in {} document{} from {} of text, {} ids of {}\n", names,
             grouped(tokens), grouped(train), grouped(tokens - train), grouped(documents), documents == 1 ? "" : "s",
             bytes_text(bytes), grouped(first.vocab_size), first.tokenizer_name);
  fmt::print("took {}, {} a second\n", duration_text(result.seconds),
             bytes_text(bytes / std::max(1e-9, result.seconds)));
}

void add_tokenize(CLI::App& data) {
  auto arguments = std::make_shared<TokenizeArguments>();
  CLI::App* command = data.add_subcommand("tokenize", "Turn text into token files for training");
  command
      ->add_option("input", arguments->options.source.inputs,
                   ".jsonl and plain text files (also .gz, .xz, .zst), or - for standard input")
      ->required();
  command->add_option("--tokenizer", arguments->tokenizer, "bytes, or a tokenizer file")->capture_default_str();
  command->add_option("--output,-o", arguments->options.output.path, "The token file to write (.h5)")->required();
  command
      ->add_option("--val-fraction", arguments->options.output.val_fraction,
                   "Part of the tokens, at the end, that is kept for validation")
      ->capture_default_str();
  command->add_option("--format", arguments->format, "auto (by name), txt or jsonl")->capture_default_str();
  command->add_option("--field", arguments->options.source.field, "Field of a .jsonl record that holds the text")
      ->capture_default_str();
  command
      ->add_option("--shard-tokens", arguments->options.shard_tokens,
                   "Write NAME_00000.h5, NAME_00001.h5, ... of about this many tokens; 0: one file")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_flag("--resume", arguments->options.resume,
                    "Go on behind the shards that an interrupted run has finished");
  command->add_option("--threads", arguments->options.threads, "Threads that encode; 0: one a core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_flag("--force", arguments->options.output.force, "Replace the output if it exists");
  command->callback([arguments] { run_tokenize(*arguments); });
}

struct InfoArguments {
  std::string file;
  std::int64_t at = -1, count = 256;
  bool json = false, verify = false;
};

// Text of tokens [begin, begin + count), as far as the file goes.
std::string text_at(const TokenFile& file, std::int64_t begin, std::int64_t count) {
  const TokenFileInfo& info = file.info();
  require(begin < info.total_tokens, "{} has {} tokens; position {} lies behind its end", info.path, info.total_tokens,
          begin);
  const TokenFile::Vocabulary vocabulary = file.vocabulary();
  require(!vocabulary.empty(), "{} does not record the text of its tokens, so it cannot be shown", info.path);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(std::min(count, info.total_tokens - begin)));
  file.read(begin, ids);
  std::string text;
  for (const std::int32_t id : ids) text += vocabulary[id];
  return text;
}

nlohmann::ordered_json info_json(const TokenFileInfo& info) {
  return {{"path", info.path},
          {"tokenizer", info.tokenizer_name},
          {"tokenizer_hash", info.tokenizer_hash},
          {"vocab_size", info.vocab_size},
          {"end_of_text", info.end_of_text},
          {"tokens", info.total_tokens},
          {"train_tokens", info.val_start},
          {"val_tokens", info.total_tokens - info.val_start},
          {"documents", info.num_documents},
          {"token_bytes", info.token_bytes},
          {"block_bytes", info.block_bytes},
          {"sources", info.source_names},
          {"source_hash", info.source_hash},
          {"tool_version", info.tool_version}};
}

void print_info(const TokenFileInfo& info) {
  const auto row = [](const char* name, const std::string& value) { fmt::print("{:<14}{}\n", name, value); };
  row("file", info.path);
  row("tokenizer", fmt::format("{} (hash {}), {} ids, end of text {}", info.tokenizer_name, info.tokenizer_hash,
                               grouped(info.vocab_size), info.end_of_text));
  row("tokens", fmt::format("{} of {} bytes", grouped(info.total_tokens), info.token_bytes));
  row("  train", grouped(info.val_start));
  row("  val", info.val_start < info.total_tokens
                   ? fmt::format("{} from position {} on", grouped(info.total_tokens - info.val_start), info.val_start)
                   : "0 (no validation part)");
  row("documents", info.num_documents >= 0 ? grouped(info.num_documents) : "not recorded");
  constexpr std::size_t kShown = 8;
  for (std::size_t i = 0; i < std::min(kShown, info.source_names.size()); ++i)
    row(i == 0 ? "sources" : "", info.source_names[i]);
  if (info.source_names.size() > kShown) row("", fmt::format("and {} more", info.source_names.size() - kShown));
  if (!info.source_hash.empty()) row("source hash", info.source_hash);
  row("written by", (info.block_bytes > 0 ? "sfa " : "") + info.tool_version);
}

void run_info(const InfoArguments& arguments) {
  const TokenFile file(arguments.file);
  if (arguments.verify) file.verify();
  const bool show_text = arguments.at >= 0;
  const std::string text = show_text ? text_at(file, arguments.at, arguments.count) : "";
  if (arguments.json) {
    nlohmann::ordered_json record = info_json(file.info());
    if (arguments.verify) record["verified"] = true;
    if (show_text) {
      record["at"] = arguments.at;
      record["text"] = text;
    }
    // Text cut inside a character is not valid UTF-8; JSON has no other way to hold it.
    fmt::print("{}\n", record.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
    return;
  }
  print_info(file.info());
  if (arguments.verify) fmt::print("{:<14}all checksums match\n", "verified");
  if (!show_text) return;
  fmt::print("\n");
  std::fwrite(text.data(), 1, text.size(), stdout);
  fmt::print("\n");
}

void add_info(CLI::App& data) {
  auto arguments = std::make_shared<InfoArguments>();
  CLI::App* command = data.add_subcommand("info", "Show where a token file comes from, what it holds, and its text");
  command->add_option("file", arguments->file, "The token file")->required();
  command->add_option("--at", arguments->at, "Show the text from this token on")->check(CLI::NonNegativeNumber);
  command->add_option("--count", arguments->count, "Tokens to show")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_flag("--verify", arguments->verify, "Read the whole file and check every checksum");
  command->add_flag("--json", arguments->json, "Print one JSON object");
  command->callback([arguments] { run_info(*arguments); });
}

}  // namespace

void add_data_command(CLI::App& app) {
  CLI::App* data = app.add_subcommand("data", "Prepare and inspect training data");
  data->require_subcommand(1);
  add_tokenize(*data);
  add_info(*data);
}

}  // namespace sfa::app
