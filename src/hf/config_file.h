// config.json of a Hugging Face checkpoint <-> model.* of ours. One table an architecture says which key is which, and
// which options have to have the value that our layers compute.
//
// A model that transformers does not have (sparse attention, a window, a map behind RoPE) gets a model_type of its own,
// "sfa_gpt2", with its settings under "sfa" and code beside it (modeling_sfa.py), so that it is never taken for the
// dense model.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "config/config.h"

namespace sfa::hf {

/// Parses a file of JSON. Throws Error with one sentence when it is missing or is not an object.
nlohmann::json read_json_file(const std::string& path);

/// The configuration that config.json (already parsed; `where` is its path) describes, with our defaults elsewhere;
/// output_dir is "-", and data.seq_len is not longer than kSequence. Throws Error for an unknown model_type, a missing
/// key, or an option that we do not have.
Config config_from_hf(const nlohmann::json& config, const std::string& where,
                      const std::vector<std::string>& overrides);
inline constexpr std::int64_t kSequence = 2048;

/// True when transformers' own class computes this model.
bool is_plain(const ModelConfig& model);

/// The inverse: config.json of an exported model. `dtype` is "F32", "BF16" or "F16". Throws Error when no class, and
/// not modeling_sfa.py either, can compute the model.
nlohmann::ordered_json config_to_hf(const Config& config, const std::string& dtype);

}  // namespace sfa::hf
