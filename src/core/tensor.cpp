#include "core/tensor.h"

namespace sfa {
namespace {
std::size_t at(int i) {
  return static_cast<std::size_t>(i);
}

void set_contiguous(Tensor& t, std::initializer_list<std::int64_t> dims) {
  require(dims.size() <= Tensor::kMaxRank, "internal error: a tensor of rank {}", dims.size());
  t.rank = static_cast<int>(dims.size());
  int i = 0;
  for (std::int64_t d : dims) t.shape[at(i++)] = d;
  std::int64_t step = 1;
  for (i = t.rank - 1; i >= 0; --i) {
    t.stride[at(i)] = step;
    step *= t.shape[at(i)];
  }
}
}  // namespace

Tensor::Tensor(void* memory, DType type, Device where, std::initializer_list<std::int64_t> dims)
    : data(memory), dtype(type), device(where) {
  set_contiguous(*this, dims);
}

std::int64_t Tensor::numel() const {
  std::int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= shape[at(i)];
  return n;
}

bool Tensor::contiguous() const {
  std::int64_t step = 1;
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[at(i)] != 1 && stride[at(i)] != step) return false;
    step *= shape[at(i)];
  }
  return true;
}

Tensor Tensor::slice(int axis, std::int64_t begin, std::int64_t count) const {
  if (axis < 0) axis += rank;
  require(axis >= 0 && axis < rank && begin >= 0 && count >= 0 && begin + count <= shape[at(axis)],
          "internal error: slice [{}, {}) of axis {} of {}", begin, begin + count, axis, *this);
  Tensor t = *this;
  t.shape[at(axis)] = count;
  if (data != nullptr)
    t.data = static_cast<std::byte*>(data) + begin * stride[at(axis)] * static_cast<std::int64_t>(size_of(dtype));
  return t;
}

Tensor Tensor::view(std::initializer_list<std::int64_t> dims) const {
  require(contiguous(), "internal error: view of the strided tensor {}", *this);
  Tensor t(data, dtype, device, dims);
  std::int64_t known = 1, open = -1;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[at(i)] == -1)
      open = i;
    else
      known *= t.shape[at(i)];
  }
  if (open >= 0) {
    std::array<std::int64_t, kMaxRank> full = t.shape;
    full[at(static_cast<int>(open))] = known > 0 ? numel() / known : 0;
    std::int64_t step = 1;
    for (int i = t.rank - 1; i >= 0; --i) {
      t.shape[at(i)] = full[at(i)];
      t.stride[at(i)] = step;
      step *= full[at(i)];
    }
  }
  require(t.numel() == numel(), "internal error: {} viewed as {}", *this, t);
  return t;
}

Tensor Tensor::split_last(std::int64_t parts) const {
  require(rank >= 1 && rank < kMaxRank && parts > 0 && dim(-1) % parts == 0, "internal error: {} split into {} parts",
          *this, parts);
  Tensor t = *this;
  const std::int64_t each = dim(-1) / parts;
  t.rank = rank + 1;
  t.shape[at(rank - 1)] = parts;
  t.shape[at(rank)] = each;
  t.stride[at(rank - 1)] = each;
  t.stride[at(rank)] = 1;
  return t;
}

std::string Tensor::describe() const {
  std::string text = "[";
  for (int i = 0; i < rank; ++i) text += fmt::format("{}{}", i ? ", " : "", shape[at(i)]);
  return text + fmt::format("] {} {}", name_of(dtype), name_of(device));
}

}  // namespace sfa
