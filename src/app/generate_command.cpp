// sfa generate
#include <cmath>
#include <cstdio>

#include "app/commands.h"
#include "eval/generate.h"
#include "eval/loaded_model.h"
#include "eval/model_tokenizer.h"

namespace sfa::app {
namespace {

struct GenerateCommandOptions {
  LoadOptions load;
  GenerateOptions generate;
  std::string prompt, tokenizer;
};

void run(GenerateCommandOptions& o) {
  require(o.generate.max_tokens >= 1, "--max-tokens: must be at least 1, got {}", o.generate.max_tokens);
  require(std::isfinite(o.generate.temperature) && o.generate.temperature >= 0,
          "--temperature: must not be negative, got {}", o.generate.temperature);
  require(o.generate.top_k >= 0, "--top-k: must not be negative, got {}", o.generate.top_k);
  LoadedModel loaded(o.load);
  const auto tokenizer = tokenizer_of(loaded, o.tokenizer);
  std::vector<std::uint32_t> ids;
  tokenizer->encode(o.prompt, ids);
  if (ids.empty())
    ids.push_back(static_cast<std::uint32_t>(tokenizer->end_of_text()));  // an empty prompt starts a new document
  o.generate.prompt.assign(ids.begin(), ids.end());
  o.generate.end_token = static_cast<std::int32_t>(tokenizer->end_of_text());
  const auto ends = loaded.source().end_ids(*tokenizer);
  std::fwrite(o.prompt.data(), 1, o.prompt.size(), stdout);
  generate(loaded.context(), loaded.model(), o.generate, [&](std::int32_t token) {
    const std::uint32_t id = static_cast<std::uint32_t>(token);
    if (ends.contains(id)) return false;
    if (id >= tokenizer->vocab_size()) return true;  // a row that no text was ever encoded to
    const std::string text = tokenizer->decode({&id, 1});
    std::fwrite(text.data(), 1, text.size(), stdout);
    return std::fflush(stdout) == 0;
  });
  std::fputc('\n', stdout);
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto o = std::make_shared<GenerateCommandOptions>();
  CLI::App* command = app.add_subcommand("generate", "Continue a text");
  command
      ->add_option("--checkpoint", o->load.path,
                   "a checkpoint, a run folder (its newest checkpoint), or a Hugging Face folder")
      ->required();
  command->add_option("--prompt", o->prompt, "text to continue; empty starts a document");
  command->add_option("--tokenizer", o->tokenizer,
                      "a tokenizer file; default: the copy in the run's folder, or where it was");
  command->add_option("--max-tokens", o->generate.max_tokens, "new tokens at the most")->capture_default_str();
  command->add_option("--temperature", o->generate.temperature, "0 = always the likeliest token")
      ->capture_default_str();
  command->add_option("--top-k", o->generate.top_k, "draw among the k likeliest; 0 = all")->capture_default_str();
  command->add_option("--seed", o->generate.seed, "same seed, same text")->capture_default_str();
  command->add_option("--device", o->load.device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--dtype", o->load.dtype, "auto, fp32 or bf16")
      ->check(CLI::IsMember({"auto", "fp32", "bf16"}))
      ->capture_default_str();
  command->add_option("--set", o->load.overrides, "key.path=value over the saved configuration");
  command->callback([o] { run(*o); });
}

}  // namespace sfa::app
