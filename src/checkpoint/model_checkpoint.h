// Parameters and moments in and out of a checkpoint, walking the one list of parameters. Stored are the f32 master
// weights, from which every device and dtype makes its own: "param/<name>", and with a training state "adam_m/<name>"
// and "adam_v/<name>".
#pragma once

#include "checkpoint/background.h"
#include "checkpoint/checkpoint.h"
#include "core/context.h"
#include "models/parameters.h"

namespace sfa {

/// Adds "<prefix>/<name>" of every parameter from a flat f32 buffer on any device; tensor by tensor through host
/// memory.
void add_parameters(Context& ctx, CheckpointWriter& writer, const ParameterList& list, const std::string& prefix,
                    const Tensor& flat);

/// The same into the copy of a background checkpoint. Copies from a GPU are queued on the context's stream: call
/// ctx.synchronize() before BackgroundCheckpoint::start().
void copy_parameters(Context& ctx, BackgroundCheckpoint& background, const ParameterList& list,
                     const std::string& prefix, const Tensor& flat);

/// Reads "<prefix>/<name>" of every parameter into a flat buffer of f32 or bf16 on any device, tensor by tensor. Throws
/// Error naming the first tensor that is absent or has another shape.
void read_parameters(Context& ctx, CheckpointReader& reader, const ParameterList& list, const std::string& prefix,
                     const Tensor& flat);

}  // namespace sfa
