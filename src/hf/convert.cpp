#include "hf/convert.h"

#include <fcntl.h>
#include <unistd.h>

#include <set>

#include "checkpoint/folders.h"
#include "core/build_config.h"
#include "core/error.h"
#include "core/log.h"
#include "hf/config_file.h"
#include "hf/element.h"
#include "hf/model_source.h"
#include "tokenizer/bpe_files.h"
#include "tokenizer/tokenizer.h"

namespace sfa::hf {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

// A folder that is filled under a temporary name beside its own, then renamed; removed when that does not happen.
class FreshFolder {
 public:
  explicit FreshFolder(const std::string& path) : path_(fs::absolute(path).lexically_normal()) {
    if (!path_.has_filename()) path_ = path_.parent_path();
    std::error_code error;
    require(fs::symlink_status(path_, error).type() == fs::file_type::not_found,
            "{} exists already; name a folder that does not", path_.string());
    temporary_ = path_.parent_path() / ("." + path_.filename().string() + ".tmp-" + std::to_string(::getpid()));
    fs::create_directories(path_.parent_path(), error);
    fs::remove_all(temporary_, error);
    require(fs::create_directory(temporary_, error), "could not create the folder {}: {}", temporary_.string(),
            error.message());
  }
  ~FreshFolder() {
    std::error_code error;
    if (!temporary_.empty()) fs::remove_all(temporary_, error);
  }
  FreshFolder(const FreshFolder&) = delete;
  FreshFolder& operator=(const FreshFolder&) = delete;

  [[nodiscard]] const fs::path& inside() const { return temporary_; }
  void finish() {
    checkpoint::sync_folder(temporary_);
    rename_into_place(temporary_.string(), path_.string(), false);
    temporary_.clear();
  }

 private:
  fs::path path_, temporary_;
};

void copy_synced(const fs::path& from, const fs::path& to) {
  const File file = File::open_to_read(from.string());
  std::string content(file.size(), '\0');
  file.read_at(0, content.data(), content.size());
  write_whole_file(to.string(), content, true);
}

// What stands beside weights and says how text becomes ids and how to sample.
const std::vector<const char*> kTokenizerFiles{
    "tokenizer.json",          "vocab.json",        "merges.txt",         "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"};

void copy_tokenizer(const fs::path& from, const fs::path& to) {
  std::error_code error;
  for (const char* name : kTokenizerFiles)
    if (fs::is_regular_file(from / name, error)) copy_synced(from / name, to / name);
  for (fs::directory_iterator it(from, error), end; !error && it != end; it.increment(error))
    if (it->path().extension() == ".tiktoken") copy_synced(it->path(), to / it->path().filename());
}

// 256 bytes and the end of text as a byte-level BPE without merges: the same ids.
std::string byte_tokenizer_json() {
  ordered_json vocabulary = ordered_json::object();
  for (int b = 0; b < 256; ++b) vocabulary[gpt2_characters_of_bytes(std::string(1, static_cast<char>(b)))] = b;
  const ordered_json end = {{"id", 256},       {"content", "<|endoftext|>"}, {"single_word", false}, {"lstrip", false},
                            {"rstrip", false}, {"normalized", false},        {"special", true}};
  const ordered_json level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", true}};
  const ordered_json root = {{"version", "1.0"},
                             {"truncation", nullptr},
                             {"padding", nullptr},
                             {"added_tokens", {end}},
                             {"normalizer", nullptr},
                             {"pre_tokenizer", level},
                             {"post_processor", nullptr},
                             {"decoder", level},
                             {"model",
                              {{"type", "BPE"},
                               {"dropout", nullptr},
                               {"unk_token", nullptr},
                               {"continuing_subword_prefix", nullptr},
                               {"end_of_word_suffix", nullptr},
                               {"fuse_unk", false},
                               {"byte_fallback", false},
                               {"ignore_merges", false},
                               {"vocab", vocabulary},
                               {"merges", json::array()}}}};
  return root.dump(1) + "\n";
}

// The tokenizer's files into `to`; null when it is not found, which a line of the log says. Error when it has ids that
// the model, of `vocab_size`, has not.
std::unique_ptr<Tokenizer> export_tokenizer(const ModelSource& source, std::int64_t vocab_size, const fs::path& to) {
  std::unique_ptr<Tokenizer> tokenizer;
  try {
    tokenizer = find_tokenizer(source.state().value("tokenizer_hash", ""), source.tokenizer_places(),
                               "the model is written without one");
  } catch (const Error& error) {
    spdlog::warn("{}", error.what());
    return nullptr;
  }
  require(tokenizer->vocab_size() <= vocab_size, "the tokenizer {} has {} ids, the model {}", tokenizer->name(),
          tokenizer->vocab_size(), vocab_size);
  if (tokenizer->name() == "bytes") {
    write_whole_file((to / "tokenizer.json").string(), byte_tokenizer_json(), true);
  } else {
    const std::vector<std::string> files = tokenizer_files(tokenizer->name());
    copy_tokenizer(fs::path(files.front()).parent_path(), to);
    // tokenizer.json may be called otherwise where it was trained.
    const fs::path lone = files.front();
    if (lone.extension() == ".json" && !fs::exists(to / "tokenizer.json") && !fs::exists(to / "vocab.json"))
      copy_synced(lone, to / "tokenizer.json");
  }
  return tokenizer;
}

// transformers asks tokenizer_config.json for the class, and config.json where there is none; it does not know ours.
void describe_tokenizer(const Tokenizer& tokenizer, const fs::path& folder) {
  if (fs::exists(folder / "tokenizer_config.json")) return;
  const bool fast = fs::exists(folder / "tokenizer.json");
  if (!fast && !fs::exists(folder / "vocab.json")) return;
  const std::string end(tokenizer.token_bytes(tokenizer.end_of_text()));
  const ordered_json config = {{"tokenizer_class", fast ? "PreTrainedTokenizerFast" : "GPT2Tokenizer"},
                               {"eos_token", end},
                               {"clean_up_tokenization_spaces", false}};
  write_whole_file((folder / "tokenizer_config.json").string(), config.dump(2) + "\n", true);
}

void add_special_ids(ordered_json& config, const json& state, const Tokenizer* tokenizer) {
  if (tokenizer) config["bos_token_id"] = config["eos_token_id"] = tokenizer->end_of_text();
  const auto kept = state.find("hf_ids");
  if (kept == state.end() || !kept->is_object()) return;
  for (const auto& [key, id] : kept->items()) config[key] = id;
}

void carry_generation_config(const fs::path& from, const fs::path& to) {
  constexpr const char* kName = "generation_config.json";
  std::error_code error;
  if (fs::is_regular_file(from / kName, error)) copy_synced(from / kName, to / kName);
}

// Where files beside the weights are: an imported checkpoint has them in its run folder.
fs::path side_folder(const ModelSource& source) {
  if (source.from_hugging_face()) return source.folder();
  return fs::absolute(source.folder()).lexically_normal().parent_path();
}

std::string export_model(ModelSource& source, const ConvertOptions& o, const fs::path& to) {
  const Config config = source.config({});
  const auto model = make_model(config.model, Device::cpu, DType::f32);
  const ParameterList& list = model->parameters();
  std::string dtype = source.state().value("hf_dtype", "F32");
  if (o.dtype != "auto" || !is_weight_dtype(dtype)) dtype = dtype_of_option(o.dtype == "auto" ? "fp32" : o.dtype);
  ordered_json described = config_to_hf(config, dtype);
  source.check(list, o.average);
  const auto tokenizer = export_tokenizer(source, config.model.vocab_size, to);
  if (tokenizer) describe_tokenizer(*tokenizer, to);
  add_special_ids(described, source.state(), tokenizer.get());
  write_whole_file((to / "config.json").string(), described.dump(2) + "\n", true);
  carry_generation_config(side_folder(source), to);
  if (!is_plain(config.model)) write_whole_file((to / "modeling_sfa.py").string(), modeling_code(), true);
  export_parameters(list, [&](const Parameter& p, std::vector<float>& out) { source.values(p, o.average, out); },
                    to.string(), {dtype, o.shard_bytes});
  return fmt::format("{} as {} ({}){}", described["architectures"][0].get<std::string>(), o.out, torch_name(dtype),
                     is_plain(config.model) ? "" : "; it needs trust_remote_code=True");
}

std::string import_model(ModelSource& source, const ConvertOptions& o, const fs::path& to) {
  Config config = source.config({});
  config.output_dir = o.out;
  const auto model = make_model(config.model, Device::cpu, DType::f32);
  const ParameterList& list = model->parameters();
  source.check(list, o.average);
  json state = source.state();
  state["step"] = 0;
  state["arch"] = config.model.arch;
  state["vocab_size"] = config.model.vocab_size;
  state["sfa_version"] = kVersion;
  const fs::path kept = to / "tokenizer";
  if (source.state().contains("tokenizer_hash") && source.state().value("tokenizer", "bytes") != "bytes") {
    fs::create_directory(kept);
    if (const auto tokenizer = export_tokenizer(source, config.model.vocab_size, kept))
      state["tokenizer"] = "tokenizer";
  } else if (source.from_hugging_face()) {
    state["tokenizer"] = "";
  }
  carry_generation_config(side_folder(source), to);
  CheckpointWriter writer(to, 0);
  std::vector<float> values;
  for (const Parameter& p : list.all()) {
    source.values(p, o.average, values);
    writer.add({"param/" + p.name, DType::f32, p.shape}, 0, p.numel(), values.data());
  }
  writer.publish({writer.finish_file()}, state, dump_config(config));
  return fmt::format("{} as {}", config.model.arch, o.out);
}

}  // namespace

std::string convert_model(const ConvertOptions& o) {
  FreshFolder folder(o.out);
  ModelSource source(o.in);
  std::string said = o.to == "hf" ? export_model(source, o, folder.inside()) : import_model(source, o, folder.inside());
  folder.finish();
  return said;
}

}  // namespace sfa::hf
