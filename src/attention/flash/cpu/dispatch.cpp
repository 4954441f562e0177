// Which kernels this processor runs: the widest instruction set that it has.
#include <cstdlib>
#include <string_view>

#include "attention/flash/cpu/kernels.h"
#include "core/error.h"

namespace sfa::flash_cpu {
namespace {

const Kernels& choose() {
  const char* asked = std::getenv("SFA_CPU_ISA");
  const std::string_view isa = asked ? asked : "";
  require(isa.empty() || isa == "avx2" || isa == "avx512", "SFA_CPU_ISA: '{}' is not known; there are avx2 and avx512",
          isa);
  __builtin_cpu_init();
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  require(isa != "avx512" || wide, "SFA_CPU_ISA: this processor has no AVX-512 (F, BW, DQ, VL)");
  return wide && isa != "avx2" ? kAvx512Kernels : kAvx2Kernels;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace sfa::flash_cpu
