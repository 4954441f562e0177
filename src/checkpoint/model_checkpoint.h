// Parameters and moments in and out of a checkpoint, walking the one list of parameters. Stored are the f32 master
// weights, from which every device and dtype makes its own: "param/<name>", and with a training state "adam_m/<name>",
// "adam_v/<name>" and, where there is a running average of the weights, "ema/<name>".
#pragma once

#include "checkpoint/background.h"
#include "checkpoint/checkpoint.h"
#include "core/context.h"
#include "core/flat_range.h"
#include "models/parameters.h"

namespace sfa {

/// The values of a contiguous f32 or bf16 tensor on any device (waits for it).
std::vector<float> host_values(Context& ctx, const Tensor& t);

/// f32 values in host memory into a contiguous f32 or bf16 tensor of as many elements on any device (waits for it).
void upload_values(Context& ctx, const std::vector<float>& values, const Tensor& t);

/// A flat buffer, or this rank's stretch of it.
struct FlatPart {
  Tensor values;           // f32 or bf16 on any device; its first element is element `begin` of the flat buffer
  std::int64_t begin = 0;  // multiple of ParameterList::kAlignment
};

/// Adds "<prefix>/<name>" of every parameter, as f32; tensor by tensor through host memory. Of several ranks each adds
/// `mine`, and all of theirs together are the flat buffer.
void add_parameters(Context& ctx, CheckpointWriter& writer, const ParameterList& list, const std::string& prefix,
                    const FlatPart& flat, const FlatRange& mine);
void add_parameters(Context& ctx, CheckpointWriter& writer, const ParameterList& list, const std::string& prefix,
                    const Tensor& flat);

/// The same into the copy of a background checkpoint. Copies from a GPU are queued on the context's stream: call
/// ctx.synchronize() before BackgroundCheckpoint::start().
void copy_parameters(Context& ctx, BackgroundCheckpoint& background, const ParameterList& list,
                     const std::string& prefix, const FlatPart& flat, const FlatRange& mine);
void copy_parameters(Context& ctx, BackgroundCheckpoint& background, const ParameterList& list,
                     const std::string& prefix, const Tensor& flat);

/// Reads what `flat` holds of "<prefix>/<name>" of every parameter, tensor by tensor. Throws Error naming the first
/// tensor that is absent or has another shape.
void read_parameters(Context& ctx, CheckpointReader& reader, const ParameterList& list, const std::string& prefix,
                     const FlatPart& flat);
void read_parameters(Context& ctx, CheckpointReader& reader, const ParameterList& list, const std::string& prefix,
                     const Tensor& flat);

}  // namespace sfa
