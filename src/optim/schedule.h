// Learning rate against step: linear warm-up from 0 to `lr`, then down to `min_lr` at `max_steps`.
//   cosine:   min_lr + (lr - min_lr) (1 + cos(pi p)) / 2,  p = (step - warmup) / (max_steps - warmup)
//             (Loshchilov and Hutter, arXiv 1608.03983)
//   linear:   lr + (min_lr - lr) p
//   constant: lr
//   wsd:      warm-up, stable, decay: lr until `decay_steps` before the end, then lr + (min_lr - lr) d(q),
//             q = (step - (max_steps - decay_steps)) / decay_steps in [0, 1], d(q) = q (`linear`) or sqrt(q) (`sqrt`)
//             (Hu et al., MiniCPM, arXiv 2404.06395; the root is the "1-sqrt" of Hagele et al., arXiv 2405.18392).
//             The rate before the decay does not depend on max_steps: a run can be continued from there to any length.
#pragma once

#include <cstdint>
#include <string>

namespace sfa {

struct Schedule {
  std::string kind = "cosine";
  double lr = 0, min_lr = 0;
  std::int64_t warmup_steps = 0, max_steps = 1;
  std::int64_t decay_steps = 0;        // wsd: length of the decay
  std::string decay_shape = "linear";  // wsd

  /// Of update `step` = 0, 1, ...: a warm-up over w steps gives lr * (step + 1) / (w + 1), so that no update is spent
  /// on a rate of 0.
  [[nodiscard]] float at(std::int64_t step) const;
};

}  // namespace sfa
