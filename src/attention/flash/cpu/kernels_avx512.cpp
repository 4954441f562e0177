// Compiled with AVX-512 (CMakeLists.txt); dispatch.cpp calls it on processors that have it.
#include "attention/flash/cpu/decode.h"
#include "attention/flash/cpu/vec_avx512.h"

namespace sfa::flash_cpu {
constexpr Kernels kTable = kernels_of<Avx512>("avx512");
const Kernels kAvx512Kernels = kTable;
}  // namespace sfa::flash_cpu
