// sfa eval lambada_openai | hellaswag | piqa | arc_easy | arc_challenge
#include "app/eval_tasks.h"

#include <fmt/core.h>

#include "app/commands.h"
#include "eval/model_tokenizer.h"
#include "eval/saved_results.h"
#include "eval/task_score.h"

namespace sfa::app {
namespace {

struct EvalTasksOptions {
  LoadOptions load;
  std::string task, file, labels, tokenizer;
  std::int64_t limit = 0;
  ScoreOptions score;
  bool json = false, save = false;
};

std::string percent(const Mean& m) {
  return fmt::format("{:.2f} % (+- {:.2f})", 100 * m.value, 100 * m.error);
}

void evaluate(const EvalTasksOptions& o) {
  const Task task = read_task(o.task, o.file, o.labels, o.limit);
  LoadedModel loaded(o.load);
  const auto tokenizer = tokenizer_of(loaded, o.tokenizer);
  ScoreOptions options = o.score;
  options.show_progress = true;
  const TaskScore score = score_task(loaded.context(), loaded.model(), *tokenizer, task, options);
  nlohmann::ordered_json out = {{"checkpoint", loaded.folder().string()},
                                {"step", loaded.state().value("step", 0)},
                                {"file", o.file},
                                {"tokenizer", tokenizer->name()}};
  out.update(task_json(task, score));
  if (o.save) save_result(loaded.folder(), task.name, out);
  if (o.json) {
    fmt::print("{}\n", out.dump(2));
    return;
  }
  fmt::print("checkpoint {}\n{}: {} examples", loaded.folder().string(), task.name, score.examples);
  if (score.truncated > 0) fmt::print(", {} longer than the model's positions and cut off in front", score.truncated);
  fmt::print("\nacc {}", percent(score.acc));
  if (score.acc_norm) fmt::print("  acc_norm {}", percent(*score.acc_norm));
  if (score.perplexity) fmt::print("  perplexity {:.4f}", *score.perplexity);
  fmt::print("\n");
}

}  // namespace

void add_model_options(CLI::App& command, LoadOptions& load) {
  command
      .add_option("--checkpoint", load.path,
                  "a checkpoint, a run folder (its newest checkpoint), or a Hugging Face folder")
      ->required();
  command.add_option("--device", load.device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command.add_option("--dtype", load.dtype, "auto, fp32 or bf16")
      ->check(CLI::IsMember({"auto", "fp32", "bf16"}))
      ->capture_default_str();
  command.add_flag("--ema", load.average, "the running average of the weights (train.ema_decay)");
  command.add_option("--set", load.overrides, "key.path=value over the saved configuration");
}

void add_save_option(CLI::App& command, bool& save, const std::string& what) {
  command.add_flag("--save", save, "keep the result in the run's folder, for `sfa compare --html`: " + what);
}

void add_task_commands(CLI::App& eval) {
  for (const std::string& name : task_names()) {
    auto o = std::make_shared<EvalTasksOptions>();
    o->task = name;
    CLI::App* command = eval.add_subcommand(
        name, name == "lambada_openai" ? "Zero-shot: the last word of a passage, greedy accuracy and perplexity"
                                       : "Zero-shot: accuracy over choices by log-likelihood");
    add_model_options(*command, o->load);
    command->add_option("--file", o->file, "the task's file in its published layout (data/README.md)")->required();
    if (name == "piqa")
      command->add_option("--labels", o->labels, "the label file; default: NAME-labels.lst beside NAME.jsonl");
    command->add_option("--limit", o->limit, "the first so many records; 0 = all")->capture_default_str();
    command->add_option("--tokenizer", o->tokenizer, "the model's tokenizer, when the run keeps none");
    command->add_option("--batch-tokens", o->score.batch_tokens, "tokens at a time; 0 = 4096 on a CPU, 65536 on a GPU")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    command->add_flag("--json", o->json, "print one JSON object, with the log-likelihoods of every choice");
    add_save_option(*command, o->save, "eval/" + name + ".json");
    command->callback([o] { evaluate(*o); });
  }
}

}  // namespace sfa::app
