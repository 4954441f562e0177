// The CUDA side of embedding.h: same contracts. Called by embedding.cpp alone, after its checks.
#pragma once

#include "ops/embedding/embedding.h"

namespace sfa::cuda_ops {
void embedding_forward(Context& ctx, const Tensor& tokens, const Tensor& wte, const Tensor& wpe,
                       std::int64_t first_position, const Tensor& out);
void embedding_backward(Context& ctx, const EmbeddingBackward& args);
}  // namespace sfa::cuda_ops
