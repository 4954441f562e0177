#include "checkpoint/model_checkpoint.h"

#include <algorithm>

namespace sfa {

std::vector<float> host_values(Context& ctx, const Tensor& t) {
  std::vector<float> values(static_cast<std::size_t>(t.numel()));
  const auto fetch = [&](void* to) {
    ctx.copy(to, Device::cpu, t.data, t.device, static_cast<std::size_t>(t.bytes()));
    ctx.synchronize();
  };
  if (t.dtype == DType::bf16) {
    std::vector<std::uint16_t> bits(values.size());
    fetch(bits.data());
    std::transform(bits.begin(), bits.end(), values.begin(), bf16_value);
  } else {
    require(t.dtype == DType::f32, "internal error: host_values of {}", t);
    fetch(values.data());
  }
  return values;
}

void upload_values(Context& ctx, const std::vector<float>& values, const Tensor& t) {
  require(t.numel() == static_cast<std::int64_t>(values.size()), "internal error: {} values for {}", values.size(), t);
  const auto send = [&](const void* from) {
    ctx.copy(t.data, t.device, from, Device::cpu, static_cast<std::size_t>(t.bytes()));
    ctx.synchronize();
  };
  if (t.dtype == DType::f32) return send(values.data());
  std::vector<std::uint16_t> rounded(values.size());
  std::transform(values.begin(), values.end(), rounded.begin(), bf16_bits);
  send(rounded.data());
}

namespace {

// What one parameter has of a stretch of the flat buffer.
struct Piece {
  CheckpointTensor tensor;
  std::int64_t begin = 0;  // within the parameter
  Tensor values;
};

std::vector<Piece> pieces_of(const ParameterList& list, const std::string& prefix, const FlatPart& flat,
                             const FlatRange& mine) {
  std::vector<Piece> pieces;
  for (const Parameter& p : list.all()) {
    const FlatRange part = intersection({p.offset, p.numel()}, mine);
    if (part.count == 0) continue;
    pieces.push_back({{prefix + "/" + p.name, DType::f32, p.shape},
                      part.begin - p.offset,
                      flat.values.slice(0, part.begin - flat.begin, part.count)});
  }
  return pieces;
}

void expect(const CheckpointReader& reader, const std::string& name, const std::vector<std::int64_t>& shape) {
  const auto it = reader.tensors().find(name);
  require(it != reader.tensors().end(), "{}: the checkpoint has no tensor '{}'", reader.folder().string(), name);
  require(it->second.shape == shape, "{}: the checkpoint's '{}' has shape [{}], the model's has [{}]",
          reader.folder().string(), name, fmt::join(it->second.shape, ", "), fmt::join(shape, ", "));
  require(it->second.dtype == DType::f32, "{}: the checkpoint's '{}' is {}, f32 is expected", reader.folder().string(),
          name, name_of(it->second.dtype));
}

}  // namespace

void add_parameters(Context& ctx, CheckpointWriter& writer, const ParameterList& list, const std::string& prefix,
                    const FlatPart& flat, const FlatRange& mine) {
  for (const Piece& p : pieces_of(list, prefix, flat, mine)) {
    if (p.values.device == Device::cpu)
      writer.add(p.tensor, p.begin, p.values.numel(), p.values.as<float>());
    else
      writer.add(p.tensor, p.begin, p.values.numel(), host_values(ctx, p.values).data());
  }
}

void add_parameters(Context& ctx, CheckpointWriter& writer, const ParameterList& list, const std::string& prefix,
                    const Tensor& flat) {
  add_parameters(ctx, writer, list, prefix, {flat, 0}, {0, flat.numel()});
}

void copy_parameters(Context& ctx, BackgroundCheckpoint& background, const ParameterList& list,
                     const std::string& prefix, const FlatPart& flat, const FlatRange& mine) {
  for (const Piece& p : pieces_of(list, prefix, flat, mine)) {
    void* memory = background.reserve(p.tensor, p.begin, p.values.numel());
    if (p.values.dtype == DType::bf16) {
      const std::vector<float> values = host_values(ctx, p.values);
      std::copy(values.begin(), values.end(), static_cast<float*>(memory));
    } else {
      ctx.copy(memory, Device::cpu, p.values.as<float>(), p.values.device, static_cast<std::size_t>(p.values.bytes()));
    }
  }
}

void copy_parameters(Context& ctx, BackgroundCheckpoint& background, const ParameterList& list,
                     const std::string& prefix, const Tensor& flat) {
  copy_parameters(ctx, background, list, prefix, {flat, 0}, {0, flat.numel()});
}

void read_parameters(Context& ctx, CheckpointReader& reader, const ParameterList& list, const std::string& prefix,
                     const FlatPart& flat) {
  for (const Parameter& p : list.all()) expect(reader, prefix + "/" + p.name, p.shape);
  std::vector<float> host;
  for (const Piece& p : pieces_of(list, prefix, flat, {flat.begin, flat.values.numel()})) {
    host.resize(static_cast<std::size_t>(p.values.numel()));
    reader.read(p.tensor.name, p.begin, p.values.numel(), host.data());
    upload_values(ctx, host, p.values);
  }
}

void read_parameters(Context& ctx, CheckpointReader& reader, const ParameterList& list, const std::string& prefix,
                     const Tensor& flat) {
  read_parameters(ctx, reader, list, prefix, FlatPart{flat, 0});
}

}  // namespace sfa
