// Learning rate against step: linear warm-up from 0 to `lr`, then down to `min_lr` at `max_steps`.
//   cosine:   min_lr + (lr - min_lr) (1 + cos(pi p)) / 2,  p = (step - warmup) / (max_steps - warmup)     (arXiv
//   1608.03983) linear:   lr + (min_lr - lr) p constant: lr
#pragma once

#include <cstdint>
#include <string>

namespace sfa {

struct Schedule {
  std::string kind = "cosine";
  double lr = 0, min_lr = 0;
  std::int64_t warmup_steps = 0, max_steps = 1;

  /// Of update `step` = 0, 1, ...: a warm-up over w steps gives lr * (step + 1) / (w + 1), so that no update is spent
  /// on a rate of 0.
  [[nodiscard]] float at(std::int64_t step) const;
};

}  // namespace sfa
