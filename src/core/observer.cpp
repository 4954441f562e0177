#include "core/observer.h"

namespace sfa {

double bytes_of(std::initializer_list<Tensor> tensors) {
  double total = 0;
  for (const Tensor& t : tensors)
    if (!t.empty()) total += static_cast<double>(t.bytes());
  return total;
}

OpWork product_work(const char* kind, std::int64_t M, std::int64_t N, std::int64_t K, double bytes) {
  return {.kind = kind,
          .shape = fmt::format("{} x {} x {}", M, N, K),
          .flops = 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K),
          .bytes = bytes};
}

}  // namespace sfa
