// The kernels for AVX2: the table of kernels.h, instantiated for the vectors of vec_avx2.h.
#include "attention/flash/cpu/decode.h"
#include "attention/flash/cpu/vec_avx2.h"

namespace sfa::flash_cpu {
constexpr Kernels kTable = kernels_of<Avx2>("avx2");
const Kernels kAvx2Kernels = kTable;
}  // namespace sfa::flash_cpu
