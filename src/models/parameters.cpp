#include "models/parameters.h"

#include <algorithm>

#include "core/rng.h"

namespace sfa {

std::int64_t Parameter::numel() const {
  std::int64_t n = 1;
  for (std::int64_t d : shape) n *= d;
  return n;
}

std::size_t ParameterList::add(Parameter parameter) {
  require(!parameter.shape.empty() && parameter.shape.size() <= 2, "internal error: parameter '{}' has {} dimensions",
          parameter.name, parameter.shape.size());
  parameter.offset = size_;
  size_ += (parameter.numel() + kAlignment - 1) / kAlignment * kAlignment;
  all_.push_back(std::move(parameter));
  return all_.size() - 1;
}

std::int64_t ParameterList::count() const {
  std::int64_t n = 0;
  for (const Parameter& p : all_) n += p.numel();
  return n;
}

const Parameter* ParameterList::find(std::string_view name) const {
  const auto it = std::find_if(all_.begin(), all_.end(), [&](const Parameter& p) { return p.name == name; });
  return it == all_.end() ? nullptr : &*it;
}

Tensor ParameterList::view(const FlatMemory& memory, std::size_t index) const {
  const Parameter& p = all_.at(index);
  const std::int64_t offset = memory.offsets.empty() ? p.offset : memory.offsets.at(index);
  const Tensor part = memory.flat.slice(0, offset, p.numel());
  return p.shape.size() == 1 ? part : part.view({p.shape[0], p.shape[1]});
}

void initialize_parameters(const ParameterList& list, std::uint64_t seed, const Tensor& flat) {
  float* data = flat.as<float>();
  std::fill_n(data, flat.numel(), 0.0f);
  std::uint64_t number = 0;  // of the parameter; identities draw nothing, so a model without them begins with the same
  for (const Parameter& p : list.all()) {
    float* out = data + p.offset;
    const std::int64_t n = p.numel();
    switch (p.init) {
      case Init::zeros:
        break;
      case Init::ones:
        std::fill_n(out, n, 1.0f);
        break;
      case Init::identity:
        for (std::int64_t r = 0, width = p.shape.size() == 1 ? 1 : p.shape[1]; r < p.rows(); ++r)
          out[r * width + r % width] = 1.0f;
        break;
      case Init::normal: {
        const std::int64_t leading = p.leading_rows * (n / p.rows());
#pragma omp parallel for schedule(static)
        for (std::int64_t i = 0; i < n; ++i)
          out[i] = (i < leading ? p.leading_std_dev : p.std_dev) *
                   normal_at(seed, kPurposeInit, number, static_cast<std::uint64_t>(i));
        break;
      }
    }
    if (p.init != Init::identity) ++number;
  }
}

}  // namespace sfa
