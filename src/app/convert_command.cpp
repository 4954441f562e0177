// sfa convert
#include "app/commands.h"
#include "core/error.h"
#include "core/memory.h"
#include "hf/convert.h"

namespace sfa::app {

void add_convert_command(CLI::App& app) {
  struct Options {
    hf::ConvertOptions convert;
    std::string shard_size = "5GB";
  };
  auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("convert", "A trained model into a Hugging Face folder, or out of one");
  command
      ->add_option("in", o->convert.in, "a checkpoint, a run folder (its newest checkpoint), or a Hugging Face folder")
      ->required();
  command->add_option("out", o->convert.out, "a folder that does not exist yet")->required();
  command->add_option("--to", o->convert.to, "hf (config.json and safetensors) or sfa (a checkpoint of ours)")
      ->required()
      ->check(CLI::IsMember({"sfa", "hf"}));
  command
      ->add_option("--dtype", o->convert.dtype,
                   "hf: auto (as imported; fp32 of a model that was trained here), fp32, bf16 or fp16")
      ->check(CLI::IsMember({"auto", "fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command->add_option("--shard-size", o->shard_size, "hf: largest file of weights")->capture_default_str();
  command->add_flag("--ema", o->convert.average, "the running average of the weights (train.ema_decay)");
  command->callback([o] {
    if (o->convert.to == "sfa" && o->convert.dtype != "auto")
      throw UsageError("--dtype: a checkpoint of ours holds fp32 weights; it goes with --to hf");
    o->convert.shard_bytes = parse_bytes(o->shard_size, "--shard-size");
    fmt::print("{}\n", hf::convert_model(o->convert));
  });
}

}  // namespace sfa::app
