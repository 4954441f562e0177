#include "eval/model_tokenizer.h"

#include <filesystem>
#include <vector>

namespace sfa {

std::unique_ptr<Tokenizer> tokenizer_of(const LoadedModel& loaded, const std::string& given) {
  namespace fs = std::filesystem;
  const std::string name = loaded.state().value("tokenizer", "bytes");
  const fs::path kept = fs::absolute(loaded.folder()).lexically_normal().parent_path() / "tokenizer";
  std::vector<std::string> places{(kept / fs::path(name).filename()).string(), kept.string(), name};
  if (!given.empty() || name == "bytes") places = {given.empty() ? name : given};
  auto tokenizer =
      find_tokenizer(loaded.state().value("tokenizer_hash", ""), places,
                     given.empty() ? "say where it is with --tokenizer" : "the model's was '" + name + "'");
  require(tokenizer->vocab_size() <= loaded.config().model.vocab_size, "the tokenizer {} has {} ids, the model {}",
          tokenizer->name(), tokenizer->vocab_size(), loaded.config().model.vocab_size);
  return tokenizer;
}

}  // namespace sfa
