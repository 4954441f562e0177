// libFuzzer target, built and run by scripts/fuzz.sh.
// sources: src/config/*.cpp src/models/model_config.cpp
// libraries: -lfmt -lyaml-cpp
//
// Configurations: a YAML text and overrides behind a line of three dashes. Either a configuration comes out that prints
// as a text which reads back to the same, or one Error.
#include <string>
#include <vector>

#include "config/config.h"
#include "core/error.h"
#include "fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string text(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> overrides;
  if (const std::size_t cut = text.find("\n---\n"); cut != std::string::npos) {
    for (std::size_t at = cut + 5; at < text.size();) {
      const std::size_t end = std::min(text.find('\n', at), text.size());
      overrides.push_back(text.substr(at, end - at));
      at = end + 1;
    }
    text.resize(cut + 1);
  }
  std::string printed;
  try {
    printed = sfa::dump_config(sfa::parse_config(text, "fuzz.yaml", overrides));
  } catch (const sfa::Error&) {
    return 0;
  }
  try {
    sfa::fuzz::must(sfa::dump_config(sfa::parse_config(printed, "printed", {})) == printed,
                    "a printed configuration reads back to itself");
  } catch (const sfa::Error&) {
    sfa::fuzz::must(false, "a printed configuration is a configuration");
  }
  return 0;
}
