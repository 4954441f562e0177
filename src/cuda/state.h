// What a Context owns on a GPU. For .cu files only.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <memory>

#include "core/context.h"
#include "core/error.h"

namespace sfa {

struct GemmPlans;  // algorithms of cuBLASLt, chosen once a shape; cuda/gemm.cu

// cuBLASLt's own advice for Hopper; smaller and some split products are out of reach.
inline constexpr std::size_t kBlasWorkspace = std::size_t{32} << 20;

struct CudaState {
  cudaStream_t stream = nullptr;
  cublasLtHandle_t blas = nullptr;
  void* workspace = nullptr;  // for cuBLASLt
  std::size_t workspace_bytes = 0;
  unsigned long long* trial_bits = nullptr;  // one number, for the choice of products' algorithms (gemm.cu)
  int sm_count = 0;
  int compute_capability = 0;     // 90 for 9.0
  std::size_t shared_memory = 0;  // bytes that a block can ask for
  std::shared_ptr<GemmPlans> gemm_plans;
  CudaState();
  ~CudaState();
  CudaState(const CudaState&) = delete;
  CudaState& operator=(const CudaState&) = delete;
};

/// Throws Error naming the call when a CUDA call failed.
void cuda_check(cudaError_t status, const char* what, const char* file, int line);
void cublas_check(cublasStatus_t status, const char* what, const char* file, int line);

}  // namespace sfa

#define SFA_CUDA_CHECK(call) ::sfa::cuda_check((call), #call, __FILE__, __LINE__)
#define SFA_CUBLAS_CHECK(call) ::sfa::cublas_check((call), #call, __FILE__, __LINE__)
