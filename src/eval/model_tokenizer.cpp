#include "eval/model_tokenizer.h"

#include <vector>

namespace sfa {

std::unique_ptr<Tokenizer> tokenizer_of(const LoadedModel& loaded, const std::string& given) {
  const std::vector<std::string> places =
      given.empty() ? loaded.source().tokenizer_places() : std::vector<std::string>{given};
  auto tokenizer =
      find_tokenizer(loaded.state().value("tokenizer_hash", ""), places,
                     given.empty() ? "say where it is with --tokenizer"
                                   : "the model's was '" + loaded.state().value("tokenizer", "bytes") + "'");
  require(tokenizer->vocab_size() <= loaded.config().model.vocab_size, "the tokenizer {} has {} ids, the model {}",
          tokenizer->name(), tokenizer->vocab_size(), loaded.config().model.vocab_size);
  return tokenizer;
}

}  // namespace sfa
