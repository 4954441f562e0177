// The tokenizer that belongs to a trained model.
#pragma once

#include <memory>
#include <string>

#include "eval/loaded_model.h"
#include "tokenizer/tokenizer.h"

namespace sfa {

/// That of the training data: `given` (empty = not given), or the model's own copy, or where it was. Throws Error when
/// none of them has the hash that the checkpoint names, or the model has fewer ids.
std::unique_ptr<Tokenizer> tokenizer_of(const LoadedModel& loaded, const std::string& given);

}  // namespace sfa
