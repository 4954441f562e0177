// sfa data tokenize | info | train-tokenizer
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/commands.h"
#include "core/error.h"
#include "core/file.h"
#include "core/progress.h"
#include "data/token_file.h"
#include "data/tokenize.h"
#include "tokenizer/bpe_trainer.h"
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
  command->add_option("--answer-field", arguments->options.source.answer_field,
                      "Field of a .jsonl record whose string follows the text as its answer (train.loss_mask)");
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

// Null where the file does not say which tokens are answers.
nlohmann::json answer_tokens(const TokenFile& file) {
  if (!file.info().has_answers) return nullptr;
  std::int64_t tokens = 0;
  const std::vector<std::int64_t> bounds = file.answers();
  for (std::size_t i = 0; i < bounds.size(); i += 2) tokens += bounds[i + 1] - bounds[i];
  return tokens;
}

nlohmann::ordered_json info_json(const TokenFile& file) {
  const TokenFileInfo& info = file.info();
  return {{"path", info.path},
          {"tokenizer", info.tokenizer_name},
          {"tokenizer_hash", info.tokenizer_hash},
          {"vocab_size", info.vocab_size},
          {"end_of_text", info.end_of_text},
          {"tokens", info.total_tokens},
          {"train_tokens", info.val_start},
          {"val_tokens", info.total_tokens - info.val_start},
          {"documents", info.num_documents},
          {"answer_tokens", answer_tokens(file)},
          {"token_bytes", info.token_bytes},
          {"block_bytes", info.block_bytes},
          {"sources", info.source_names},
          {"source_hash", info.source_hash},
          {"tool_version", info.tool_version}};
}

void print_info(const TokenFile& file) {
  const TokenFileInfo& info = file.info();
  const auto row = [](const char* name, const std::string& value) { fmt::print("{:<14}{}\n", name, value); };
  row("file", info.path);
  row("tokenizer", fmt::format("{} (hash {}), {} ids, end of text {}", info.tokenizer_name, info.tokenizer_hash,
                               grouped(info.vocab_size), info.end_of_text));
  row("tokens", fmt::format("{} of {} bytes", grouped(info.total_tokens), info.token_bytes));
  row("  train", grouped(info.val_start));
  row("  val", info.val_start < info.total_tokens
                   ? fmt::format("{} from position {} on", grouped(info.total_tokens - info.val_start), info.val_start)
                   : "0 (no validation part)");
  if (info.has_answers) row("  answers", grouped(answer_tokens(file).get<std::int64_t>()));
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
    nlohmann::ordered_json record = info_json(file);
    if (arguments.verify) record["verified"] = true;
    if (show_text) {
      record["at"] = arguments.at;
      record["text"] = text;
    }
    // Text cut inside a character is not valid UTF-8; JSON has no other way to hold it.
    fmt::print("{}\n", record.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
    return;
  }
  print_info(file);
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

struct TrainTokenizerArguments {
  TextSourceOptions source;
  std::string format = "auto", pattern = "gpt2", output;
  std::int64_t vocab_size = 4096;
  bool force = false;
};

void run_train_tokenizer(const TrainTokenizerArguments& arguments) {
  TextSourceOptions options = arguments.source;
  options.format = text_format_from_name(arguments.format);
  require(arguments.output.ends_with(".json"), "the output '{}' must end in .json, by which a tokenizer file is known",
          arguments.output);
  require(arguments.force || !std::filesystem::exists(arguments.output),
          "{} exists already; give --force to replace it", arguments.output);
  require(arguments.vocab_size >= 257, "--vocab-size: must be at least 257 (256 bytes and end of text), not {}",
          arguments.vocab_size);
  const bool qwen = arguments.pattern == "qwen";
  BpeTrainer trainer(qwen ? kQwenPattern : kGpt2Pattern, qwen);
  TextSource source(options);
  Progress progress("read", source.bytes_total());
  std::string document;  // whole documents: a word must not be cut
  for (TextPiece piece; source.next(piece);) {
    if (piece.first) {
      trainer.add(document);
      document.clear();
    }
    document += piece.text;
    progress.update(source.bytes_consumed(),
                    fmt::format("{} distinct words", grouped(static_cast<std::int64_t>(trainer.distinct_words()))));
  }
  trainer.add(document);
  progress.finish();
  require(trainer.distinct_words() > 0, "there was no text to learn from, so {} was not written", arguments.output);
  const BpeDefinition definition = trainer.train(arguments.vocab_size);
  write_whole_file(arguments.output, tokenizer_json(definition), arguments.force);
  const auto made = static_cast<std::int64_t>(definition.tokens.size());
  fmt::print("{}: {} ids learnt from {} of text ({} distinct words) in {}\n", arguments.output, grouped(made),
             bytes_text(static_cast<double>(trainer.bytes())),
             grouped(static_cast<std::int64_t>(trainer.distinct_words())), duration_text(progress.seconds()));
  if (made < arguments.vocab_size)
    fmt::print("the text has no more pairs to merge, so there are fewer ids than were asked for\n");
}

void add_train_tokenizer(CLI::App& data) {
  auto arguments = std::make_shared<TrainTokenizerArguments>();
  CLI::App* command = data.add_subcommand("train-tokenizer", "Learn a byte-level BPE vocabulary from text");
  command
      ->add_option("input", arguments->source.inputs,
                   ".jsonl and plain text files (also .gz, .xz, .zst), or - for standard input")
      ->required();
  command->add_option("--output,-o", arguments->output, "The tokenizer.json to write")->required();
  command->add_option("--vocab-size", arguments->vocab_size, "Ids in all, with 256 bytes and end of text")
      ->capture_default_str();
  command->add_option("--pattern", arguments->pattern, "How words are cut: gpt2, or qwen (with NFC, digits one by one)")
      ->check(CLI::IsMember({"gpt2", "qwen"}))
      ->capture_default_str();
  command->add_option("--format", arguments->format, "auto (by name), txt or jsonl")->capture_default_str();
  command->add_option("--field", arguments->source.field, "Field of a .jsonl record that holds the text")
      ->capture_default_str();
  command->add_flag("--force", arguments->force, "Replace the output if it exists");
  command->callback([arguments] { run_train_tokenizer(*arguments); });
}

}  // namespace

void add_data_command(CLI::App& app) {
  CLI::App* data = app.add_subcommand("data", "Prepare and inspect training data");
  data->require_subcommand(1);
  add_tokenize(*data);
  add_info(*data);
  add_train_tokenizer(*data);
  add_needle_data_command(*data);
}

}  // namespace sfa::app
