// libFuzzer target, built and run by scripts/fuzz.sh.
// sources: src/hf/config_file.cpp src/hf/element.cpp src/config/*.cpp src/models/model_config.cpp src/core/file.cpp
// libraries: -lfmt -lyaml-cpp -fopenmp=libgomp
//
// config.json of a Hugging Face folder: any bytes either give a configuration of ours, which is exported as a
// config.json that gives the same one again (or can't be exported), or end in one sfa::Error.

#include "core/error.h"
#include "fuzz/fuzz.h"
#include "hf/config_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const sfa::fuzz::MemoryFile file(std::string_view(reinterpret_cast<const char*>(data), size));
  sfa::Config config;
  nlohmann::ordered_json written;
  try {
    config = sfa::hf::config_from_hf(sfa::hf::read_json_file(file.path()), "config.json", {});
    written = sfa::hf::config_to_hf(config, "F32");
  } catch (const sfa::Error& error) {
    sfa::fuzz::must(std::string_view(error.what()).find('\n') == std::string_view::npos, "an error is one line");
    return 0;
  }
  try {
    const auto again = sfa::hf::config_from_hf(nlohmann::json::parse(written.dump()), "written", {});
    sfa::fuzz::must(sfa::dump_config(again) == sfa::dump_config(config), "what is exported is what was read");
  } catch (const sfa::Error& error) {
    sfa::fuzz::must(false, error.what());
  }
  return 0;
}
