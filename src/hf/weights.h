// A model's parameters in and out of Hugging Face tensors, walking the one list of parameters and its HfViews: row
// ranges of ours, transposed where they say so. Rows that no view covers pad the vocabulary: zero on import, left out
// on export.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "hf/safetensors.h"
#include "models/parameters.h"

namespace sfa::hf {

/// What import does about a parameter that the checkpoint lacks.
enum class Missing : std::uint8_t {
  refuse,
  keep_identity,  // one that starts as the identity keeps what is in the buffer: it does not change the function
};

/// Throws Error unless every tensor that the list's views name is there with the view's shape and a dtype that is read,
/// and the checkpoint has no tensor besides (but buffers, and a copy of the embedding where the head is tied). Names
/// may come with or without the leading "transformer." or "model.".
void check_tensors(const ParameterList& list, const SafetensorsSet& set, const std::string& where, Missing missing);

/// Fills `out` (numel elements, row-major) with one parameter of a checkpoint that check_tensors() has passed; false,
/// with `out` as it was, when the checkpoint lacks it.
bool read_parameter(const SafetensorsSet& set, const Parameter& p, std::vector<float>& out);

struct ExportOptions {
  std::string dtype = "F32";                  // F32 | BF16 | F16
  std::uint64_t shard_bytes = 5'000'000'000;  // a tensor larger than this has a shard of its own
};

/// Writes model.safetensors, or shards with their index, into `folder`. `values` fills a parameter's elements,
/// row-major.
void export_parameters(const ParameterList& list,
                       const std::function<void(const Parameter&, std::vector<float>& out)>& values,
                       const std::string& folder, const ExportOptions& options);

}  // namespace sfa::hf
