// libFuzzer target, built and run by scripts/fuzz.sh.
// sources: src/hf/safetensors.cpp src/core/file.cpp
// libraries: -lfmt
//
// safetensors files: any bytes either open, and then every tensor's bytes lie inside the file, without overlap and of
// the size that shape and dtype make, or end in one sfa::Error.

#include <numeric>

#include "core/error.h"
#include "fuzz/fuzz.h"
#include "hf/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const sfa::fuzz::MemoryFile file(bytes);
  try {
    const sfa::hf::SafetensorsFile opened(file.path());
    std::uint64_t total = 0, sum = 0;
    for (const auto& [name, tensor] : opened.tensors()) {
      const auto part = opened.bytes(tensor);
      std::uint64_t elements = 1;
      for (const std::int64_t n : tensor.shape) {
        sfa::fuzz::must(n >= 0, "dimensions are not negative");
        elements *= static_cast<std::uint64_t>(n);
      }
      sfa::fuzz::must(part.size() == elements * sfa::hf::size_of_dtype(tensor.dtype), "shape and dtype make the size");
      for (const std::byte b : part) sum += static_cast<std::uint64_t>(b);  // all of it can be read
      total += part.size();
    }
    sfa::fuzz::must(total + 8 <= size && sum <= 255 * total, "tensors share no bytes");
  } catch (const sfa::Error& error) {
    sfa::fuzz::must(std::string_view(error.what()).find('\n') == std::string_view::npos, "an error is one line");
  }
  return 0;
}
