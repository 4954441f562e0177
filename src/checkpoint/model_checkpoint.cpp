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

void add_parameters(Context& ctx, CheckpointWriter& writer, const ParameterList& list, const std::string& prefix,
                    const Tensor& flat) {
  for (std::size_t i = 0; i < list.all().size(); ++i) {
    const Parameter& p = list.all()[i];
    const Tensor view = list.view(flat, i);
    const CheckpointTensor tensor{prefix + "/" + p.name, DType::f32, p.shape};
    if (flat.device == Device::cpu)
      writer.add(tensor, 0, p.numel(), view.as<float>());
    else
      writer.add(tensor, 0, p.numel(), host_values(ctx, view).data());
  }
}

void copy_parameters(Context& ctx, BackgroundCheckpoint& background, const ParameterList& list,
                     const std::string& prefix, const Tensor& flat) {
  for (std::size_t i = 0; i < list.all().size(); ++i) {
    const Parameter& p = list.all()[i];
    const Tensor view = list.view(flat, i);
    void* memory = background.reserve({prefix + "/" + p.name, DType::f32, p.shape}, 0, p.numel());
    if (flat.dtype == DType::bf16) {
      const std::vector<float> values = host_values(ctx, view);
      std::copy(values.begin(), values.end(), static_cast<float*>(memory));
    } else {
      ctx.copy(memory, Device::cpu, view.as<float>(), flat.device, static_cast<std::size_t>(view.bytes()));
    }
  }
}

void read_parameters(Context& ctx, CheckpointReader& reader, const ParameterList& list, const std::string& prefix,
                     const Tensor& flat) {
  std::vector<float> host;
  for (std::size_t i = 0; i < list.all().size(); ++i) {
    const Parameter& p = list.all()[i];
    const std::string name = prefix + "/" + p.name;
    const auto it = reader.tensors().find(name);
    require(it != reader.tensors().end(), "{}: the checkpoint has no tensor '{}'", reader.folder().string(), name);
    require(it->second.shape == p.shape, "{}: the checkpoint's '{}' has shape [{}], the model's has [{}]",
            reader.folder().string(), name, fmt::join(it->second.shape, ", "), fmt::join(p.shape, ", "));
    require(it->second.dtype == DType::f32, "{}: the checkpoint's '{}' is {}, f32 is expected",
            reader.folder().string(), name, name_of(it->second.dtype));
    host.resize(static_cast<std::size_t>(p.numel()));
    reader.read(name, 0, p.numel(), host.data());
    upload_values(ctx, host, list.view(flat, i));
  }
}

}  // namespace sfa
