// The CUDA side of embedding.h: same contracts. Called by embedding.cpp alone, after its checks.
#pragma once

#include "ops/embedding/embedding.h"

namespace sfa::cuda_ops {
void embedding_forward(Context& ctx, const Tensor& tokens, const Tensor& wte, const Tensor& wpe,
                       std::int64_t first_position, const Tensor& out);
void embedding_backward(Context& ctx, const EmbeddingBackward& args);
/// Bytes that embedding_backward takes from its scratch arena for N = B*T tokens.
std::size_t embedding_backward_scratch(std::int64_t N, std::int64_t C);
}  // namespace sfa::cuda_ops
