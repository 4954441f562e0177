// sfa eval niah | passkey
#include <fmt/core.h>

#include <fstream>
#include <sstream>

#include "app/eval_tasks.h"
#include "core/error.h"
#include "eval/model_tokenizer.h"
#include "eval/needle_task.h"
#include "eval/saved_results.h"

namespace sfa::app {
namespace {

struct EvalNeedleOptions {
  LoadOptions load;
  NeedleOptions needle;
  ScoreOptions score;
  std::string tokenizer, haystack;
  bool json = false, save = false;
};

std::string read_haystack(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  require(in.good(), "--haystack: {} can't be read", path);
  std::stringstream text;
  text << in.rdbuf();
  require(!text.str().empty(), "--haystack: {} is empty", path);
  return text.str();
}

void evaluate(EvalNeedleOptions& o) {
  if (!o.haystack.empty()) o.needle.haystack = read_haystack(o.haystack);
  LoadedModel loaded(o.load);
  const auto tokenizer = tokenizer_of(loaded, o.tokenizer);
  if (o.needle.lengths.empty()) o.needle.lengths = {loaded.config().data.seq_len};
  o.score.show_progress = true;
  const auto cells = find_needles(loaded.context(), loaded.model(), *tokenizer, o.needle, o.score);
  nlohmann::ordered_json out = {{"task", o.needle.kind == "passkey" ? "passkey" : "niah"},
                                {"kind", o.needle.kind},
                                {"checkpoint", loaded.folder().string()},
                                {"step", loaded.state().value("step", 0)},
                                {"tokenizer", tokenizer->name()},
                                {"seed", o.needle.seed},
                                {"samples", o.needle.samples}};
  out.update(needle_json(cells));
  if (o.save) save_result(loaded.folder(), o.needle.kind == "passkey" ? "passkey" : "niah_" + o.needle.kind, out);
  if (!o.json) {
    fmt::print("checkpoint {}\n{}: accuracy in %, {} samples a cell, lengths in tokens\n{}", loaded.folder().string(),
               o.needle.kind, o.needle.samples, needle_map(cells));
    return;
  }
  fmt::print("{}\n", out.dump(2));
}

}  // namespace

void add_needle_commands(CLI::App& eval) {
  for (const bool passkey : {false, true}) {
    auto o = std::make_shared<EvalNeedleOptions>();
    o->needle.kind = passkey ? "passkey" : "synthetic";
    CLI::App* command = eval.add_subcommand(passkey ? "passkey" : "niah",
                                            passkey ? "Retrieval of a five-digit key from noise, by length and depth"
                                                    : "Needle in a haystack: accuracy by length and depth");
    add_model_options(*command, o->load);
    if (!passkey) {
      command
          ->add_option("--kind", o->needle.kind,
                       "synthetic (repeated '#', for models trained on `sfa data needle`), single or multikey (RULER)")
          ->check(CLI::IsMember({"synthetic", "single", "multikey"}))
          ->capture_default_str();
      command->add_option("--keys", o->needle.keys, "multikey: needles in all")->capture_default_str();
    }
    command->add_option("--lengths", o->needle.lengths, "tokens, for example 1024,8192; default: as trained")
        ->delimiter(',');
    command->add_option("--depths", o->needle.depths, "places of the needle, beginning to end")->capture_default_str();
    command->add_option("--samples", o->needle.samples, "prompts a length and depth")->capture_default_str();
    command->add_option("--seed", o->needle.seed, "of the prompts")->capture_default_str();
    command->add_option("--haystack", o->haystack, "a text file to hide needles in, instead of noise");
    command->add_option("--tokenizer", o->tokenizer, "the model's tokenizer, when the run keeps none");
    command->add_option("--batch-tokens", o->score.batch_tokens, "tokens at a time; 0 = 4096 on a CPU, 65536 on a GPU")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    command->add_flag("--json", o->json, "print one JSON object");
    add_save_option(*command, o->save, passkey ? "eval/passkey.json" : "eval/niah_KIND.json");
    command->callback([o] { evaluate(*o); });
  }
}

}  // namespace sfa::app
