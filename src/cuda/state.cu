#include "cuda/state.h"

#include "cuda/gemm.h"

namespace sfa {

CudaState::CudaState() {
  int device = 0, major = 0, minor = 0, shared = 0;
  SFA_CUDA_CHECK(cudaGetDevice(&device));
  SFA_CUDA_CHECK(cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, device));
  SFA_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  SFA_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  SFA_CUDA_CHECK(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  shared_memory = static_cast<std::size_t>(shared);
  compute_capability = 10 * major + minor;
  SFA_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  SFA_CUBLAS_CHECK(cublasLtCreate(&blas));
  workspace_bytes = kBlasWorkspace;
  SFA_CUDA_CHECK(cudaMalloc(&workspace, workspace_bytes));
  SFA_CUDA_CHECK(cudaMalloc(&trial_bits, sizeof *trial_bits));
  gemm_plans = make_gemm_plans();
}

CudaState::~CudaState() {
  gemm_plans.reset();
  cudaFree(trial_bits);
  cudaFree(workspace);
  if (blas != nullptr) cublasLtDestroy(blas);
  if (stream != nullptr) cudaStreamDestroy(stream);
}

void cuda_check(cudaError_t status, const char* what, const char* file, int line) {
  if (status == cudaSuccess) return;
  fail("CUDA: {} ({}) in {} at {}:{}", cudaGetErrorString(status), cudaGetErrorName(status), what, file, line);
}

void cublas_check(cublasStatus_t status, const char* what, const char* file, int line) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail("cuBLASLt: {} in {} at {}:{}", cublasLtGetStatusString(status), what, file, line);
}

}  // namespace sfa
