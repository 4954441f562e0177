// sfa convert: a trained model from one form into another. What is written appears whole, under its name, or not at
// all.
#pragma once

#include <cstdint>
#include <string>

namespace sfa::hf {

struct ConvertOptions {
  std::string in;   // a checkpoint, a run folder (its newest checkpoint), or a Hugging Face folder
  std::string out;  // must not exist
  std::string to;   // "sfa" | "hf"
  /// Of an exported model: fp32 | bf16 | fp16; auto = as it was imported, fp32 for what was trained here.
  std::string dtype = "auto";
  std::uint64_t shard_bytes = 5'000'000'000;
  bool average = false;  // the running average of the weights in their place
};

/// to "hf": config.json, model.safetensors or shards with an index, the tokenizer's files, generation_config.json where
/// the input had one, and modeling_sfa.py where transformers has no such model.
/// to "sfa": a run folder with a checkpoint of step 0 (weights alone), the tokenizer's files under tokenizer/, and
/// generation_config.json. Returns a line that says what was written.
std::string convert_model(const ConvertOptions& options);

/// src/hf/modeling_sfa.py, as it is beside an exported model.
const char* modeling_code();

}  // namespace sfa::hf
