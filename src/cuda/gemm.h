// Matrix products through cuBLASLt on row-major matrices, with the epilogues that linear layers want.
//   d = op(a) op(b)  [+ d]                        accumulation in f32; f32 inputs are multiplied in f32, not TF32
//   bias:            d = op(a) op(b) + bias       (bias [N], dtype of d)
//   gelu:            pre = op(a) op(b) + bias;  d = gelu(pre)
// cuBLASLt reads column-major: the product is asked for as d^T = op(b)^T op(a)^T.
// The algorithm is chosen when a shape is first seen and kept for the life of the context. cuBLASLt's heuristic
// proposes some; reductions whose order could vary or that add in the type of d are left out. Its first proposal
// decides the bits of the result; of the others, those that give the very same bits on the operands at hand are timed,
// and the fastest is taken. So the choice, though measured, never shows in a result: two runs give the same bits. A run
// keeps its choices in a file and a resumed one takes them from there.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "cuda/state.h"

namespace sfa {

struct Matrix {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t ld = 0;    // elements from one row to the next
  std::int64_t step = 0;  // elements from one matrix of a batch to the next; 0 = the same for all
};

enum class Epilogue : std::uint8_t { none, bias, gelu };

struct Gemm {
  bool transpose_a = false, transpose_b = false;  // true: stored [K,M] / [N,K]
  bool accumulate = false;
  std::int64_t M = 0, N = 0, K = 0;
  Matrix a, b, d;
  Epilogue epilogue = Epilogue::none;
  const void* bias = nullptr;
  Matrix pre = {};         // [M,N], dtype of d
  std::int64_t batch = 1;  // products of one shape, their matrices a step apart; without epilogue, and not timed
};

/// Queues the product; false, with nothing queued, when cuBLASLt has no algorithm for this epilogue with these types
/// and alignments. Without an epilogue a missing algorithm is an Error.
bool gemm(CudaState& state, const Gemm& args);

std::shared_ptr<GemmPlans> make_gemm_plans();

/// The choices made so far as text: a line that names library and card, then a line a shape.
std::string saved_choices(const CudaState& state);
/// Takes choices that saved_choices wrote instead of making them anew when their shapes come. False, with nothing
/// taken, when they were made with another cuBLASLt or card, or are not what was written.
bool restore_choices(CudaState& state, const std::string& text);

/// A line for each shape seen so far: what was proposed, what was taken, times of both.
std::vector<std::string> gemm_report(const CudaState& state);

}  // namespace sfa
