// sfa eval perplexity, and the further tasks of eval_tasks.h
#include <nlohmann/json.hpp>

#include "app/commands.h"
#include "app/eval_tasks.h"
#include "core/log.h"
#include "eval/loaded_model.h"
#include "eval/perplexity.h"
#include "eval/saved_results.h"

namespace sfa::app {
namespace {

struct EvalOptions {
  LoadOptions load;
  std::string data, split = "val";
  std::int64_t seq_len = 0, batch_size = 8;
  bool json = false, save = false;
};

// Device memory for one batch of the planned shape.
struct Inputs {
  Inputs(Device device, std::int64_t B, std::int64_t T) : arena("batches", device) {
    for (int pass = 0; pass < 2; ++pass) {
      input = {arena.take(DType::i32, {B, T}), arena.take(DType::i32, {B, T}), Tensor{}};
      losses = arena.take(DType::f32, {B * T});
      if (pass == 0) arena.bind();
    }
  }
  static ModelInput upload(void* owner, Context& ctx, const Batch& batch) {
    const ModelInput& in = static_cast<Inputs*>(owner)->input;
    ctx.copy(in.tokens.data, in.tokens.device, batch.tokens.data(), Device::cpu,
             batch.tokens.size() * sizeof(std::int32_t));
    ctx.copy(in.targets.data, in.targets.device, batch.targets.data(), Device::cpu,
             batch.targets.size() * sizeof(std::int32_t));
    return in;
  }
  Arena arena;
  ModelInput input;
  Tensor losses;
};

void perplexity(const EvalOptions& o) {
  LoadedModel loaded(o.load);
  const Config& config = loaded.config();
  const std::int64_t T = o.seq_len == 0 ? config.data.seq_len : o.seq_len;
  require(T >= 1 && T <= config.model.max_position_embeddings, "--seq-len: {} tokens; the model has {} positions", T,
          config.model.max_position_embeddings);
  require(o.batch_size >= 1, "--batch-size: must be at least 1, got {}", o.batch_size);
  ValidationOptions v{.paths = {o.data},
                      .split = o.split == "val"     ? Split::val
                               : o.split == "train" ? Split::train
                                                    : Split::all,
                      .seq_len = static_cast<int>(T),
                      .batch_size = static_cast<int>(o.batch_size)};
  ValidationSet data(v);
  // Published models have rows for ids that their tokenizer does not use.
  require(data.shards().vocab_size() <= config.model.vocab_size,
          "{}: has a vocabulary of {} ids ({}), the model has {}", o.data, data.shards().vocab_size(),
          data.shards().tokenizer_name(), config.model.vocab_size);
  loaded.source().require_tokenizer_of(data.shards(), o.data);
  ModelArenas arenas(loaded.model().device());
  plan_model(loaded.model(), arenas, o.batch_size, T, false);
  Inputs inputs(loaded.model().device(), o.batch_size, T);
  const PerplexityResult r =
      evaluate_perplexity({loaded.context(), loaded.model(), arenas, inputs.losses, Inputs::upload, &inputs}, data);
  nlohmann::ordered_json out = {{"checkpoint", loaded.folder().string()},
                                {"step", loaded.state().value("step", 0)},
                                {"data", o.data},
                                {"split", o.split},
                                {"seq_len", T},
                                {"kv_cache", o.load.kv_cache},
                                {"loss", r.loss},
                                {"ppl", r.perplexity},
                                {"bits_per_byte", nullptr},
                                {"tokens", r.tokens}};
  if (r.bits_per_byte > 0) out["bits_per_byte"] = r.bits_per_byte;
  if (o.save) {
    nlohmann::ordered_json kept = out;
    kept["documents"] = nlohmann::ordered_json::array();
    for (const DocumentLoss& d : r.documents) kept["documents"].push_back({d.tokens, d.nats});
    save_result(loaded.folder(), o.load.kv_cache == "int8" ? "perplexity_int8" : "perplexity", kept);
  }
  if (o.json) {
    fmt::print("{}\n", out.dump(2));
    return;
  }
  fmt::print("checkpoint {}\nloss {:.5f}  ppl {:.4f}  bits/byte {:.4f}  tokens {}\n", loaded.folder().string(), r.loss,
             r.perplexity, r.bits_per_byte, r.tokens);
}

}  // namespace

void add_eval_command(CLI::App& app) {
  CLI::App* eval = app.add_subcommand("eval", "Evaluate a trained model");
  eval->require_subcommand(1);
  auto o = std::make_shared<EvalOptions>();
  CLI::App* command = eval->add_subcommand("perplexity", "Mean loss over a split in non-overlapping windows");
  add_model_options(*command, o->load);
  command->add_option("--data", o->data, "token file or glob")->required();
  command->add_option("--split", o->split, "train, val or all")
      ->check(CLI::IsMember({"train", "val", "all"}))
      ->capture_default_str();
  command->add_option("--seq-len", o->seq_len, "tokens a window; 0 = as trained")->capture_default_str();
  command->add_option("--batch-size", o->batch_size, "windows at a time")->capture_default_str();
  command
      ->add_option("--kv-cache", o->load.kv_cache,
                   "int8: every token sees keys and values as a cache in 8 bits holds them (model.attention.kv_cache)")
      ->check(CLI::IsMember({"full", "int8"}))
      ->capture_default_str();
  command->add_flag("--json", o->json, "print one JSON object");
  add_save_option(*command, o->save, "eval/perplexity.json (perplexity_int8.json), with the losses of every document");
  command->callback([o] { perplexity(*o); });
  add_task_commands(*eval);
  add_needle_commands(*eval);
}

}  // namespace sfa::app
