#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace sfa {

float Schedule::at(std::int64_t step) const {
  if (step < warmup_steps)
    return static_cast<float>(lr * static_cast<double>(step + 1) / static_cast<double>(warmup_steps + 1));
  if (kind == "constant") return static_cast<float>(lr);
  if (kind == "wsd") {
    const double begin = static_cast<double>(max_steps - decay_steps), now = static_cast<double>(step);
    const double q = decay_steps > 0 ? std::clamp((now - begin) / static_cast<double>(decay_steps), 0.0, 1.0) : 0.0;
    return static_cast<float>(lr + (min_lr - lr) * (decay_shape == "sqrt" ? std::sqrt(q) : q));
  }
  const double length = static_cast<double>(std::max<std::int64_t>(1, max_steps - warmup_steps));
  const double p = std::clamp(static_cast<double>(step - warmup_steps) / length, 0.0, 1.0);
  if (kind == "linear") return static_cast<float>(lr + (min_lr - lr) * p);
  return static_cast<float>(min_lr + (lr - min_lr) * 0.5 * (1.0 + std::cos(std::numbers::pi * p)));
}

}  // namespace sfa
