// libFuzzer target, built and run by scripts/fuzz.sh.
// sources: src/data/token_f*.cpp src/core/file.cpp src/core/hdf5.cpp
// libraries: -lfmt -lxxhash -lhdf5_serial
//
// Token files (HDF5 and llm.c's .bin): any bytes either open and verify, or end in one sfa::Error.

#include "core/error.h"
#include "data/token_file.h"
#include "fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const sfa::fuzz::MemoryFile file({reinterpret_cast<const char*>(data), size});
  try {
    const sfa::TokenFile tokens(file.path());
    tokens.verify();
    sfa::fuzz::must(tokens.info().total_tokens > 0 && tokens.info().val_start <= tokens.info().total_tokens,
                    "what verifies is consistent");
  } catch (const sfa::Error&) {
  }
  return 0;
}
