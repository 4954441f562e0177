// ShardSet of loader.h: the token files that patterns name, as one sequence of tokens.
#include <glob.h>

#include <algorithm>
#include <filesystem>

#include "core/error.h"
#include "data/loader.h"

namespace sfa {
namespace {
std::vector<std::string> expand(const std::string& pattern) {
  if (std::filesystem::exists(pattern) || pattern.find_first_of("*?[") == std::string::npos) return {pattern};
  glob_t found{};
  const int result = ::glob(pattern.c_str(), 0, nullptr, &found);
  std::vector<std::string> paths(found.gl_pathv, found.gl_pathv + (result == 0 ? found.gl_pathc : 0));
  ::globfree(&found);
  require(!paths.empty(), "no data file matches '{}'", pattern);
  return paths;
}
}  // namespace

ShardSet::ShardSet(const std::vector<std::string>& patterns) {
  std::vector<std::string> paths;
  for (const std::string& pattern : patterns)
    for (std::string& path : expand(pattern)) paths.push_back(std::move(path));
  require(!paths.empty(), "no data file was named");
  std::sort(paths.begin(), paths.end());
  paths.erase(std::unique(paths.begin(), paths.end()), paths.end());
  for (const std::string& path : paths) {
    files_.push_back(std::make_shared<const TokenFile>(path));
    const TokenFileInfo &a = files_.front()->info(), &b = files_.back()->info();
    require(
        a.tokenizer_hash == b.tokenizer_hash && a.vocab_size == b.vocab_size && a.end_of_text == b.end_of_text,
        "{} was made with the tokenizer {} ({} ids, {}), but {} with {} ({} ids, {}): the shards of a run must share "
        "one tokenizer",
        a.path, a.tokenizer_name, a.vocab_size, a.tokenizer_hash, b.path, b.tokenizer_name, b.vocab_size,
        b.tokenizer_hash);
  }
}

std::int64_t ShardSet::tokens(Split split) const {
  std::int64_t sum = 0;
  for (const auto& file : files_) {
    const TokenFileInfo& info = file->info();
    sum += split == Split::train ? info.val_start
           : split == Split::val ? info.total_tokens - info.val_start
                                 : info.total_tokens;
  }
  return sum;
}

std::vector<std::string> ShardSet::tokenizer_places() const {
  const TokenFileInfo& info = files_.front()->info();
  const std::filesystem::path beside = std::filesystem::path(info.path).parent_path();
  std::vector<std::string> places{info.tokenizer_name};
  if (!info.tokenizer_path.empty()) places.push_back(info.tokenizer_path);
  const std::filesystem::path name = std::filesystem::path(info.tokenizer_name);
  places.push_back((beside / (name.has_filename() ? name : name.parent_path()).filename()).string());
  return places;
}

std::string ShardSet::describe() const {
  const std::string& first = files_.front()->info().path;
  return files_.size() == 1 ? first : fmt::format("{} files from {} on", files_.size(), first);
}

}  // namespace sfa
