#include "cuda/gemm.h"

#include <algorithm>
#include <array>
#include <map>

namespace sfa {
namespace {

cudaDataType_t cuda_type(DType type) {
  switch (type) {
    case DType::f32:
      return CUDA_R_32F;
    case DType::bf16:
      return CUDA_R_16BF;
    default:
      fail("internal error: a matrix product of {}", name_of(type));
  }
}

// The largest power of two up to 256 that divides the address: what cuBLASLt may count on.
std::uint32_t alignment_of(const void* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  return address == 0 ? 256u : static_cast<std::uint32_t>(std::min<std::uintptr_t>(256, address & (~address + 1)));
}

cublasLtEpilogue_t cublas_epilogue(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::bias:
      return CUBLASLT_EPILOGUE_BIAS;
    case Epilogue::gelu:
      return CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
    case Epilogue::gelu_derivative:
      return CUBLASLT_EPILOGUE_DGELU;
    case Epilogue::none:
      break;
  }
  return CUBLASLT_EPILOGUE_DEFAULT;
}

struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
  cublasLtMatmulAlgo_t algo{};
  bool supported = false;

  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    for (auto layout : {a, b, d})
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    if (product != nullptr) cublasLtMatmulDescDestroy(product);
  }

  template <class T>
  void set(cublasLtMatmulDescAttributes_t name, const T& value) {
    SFA_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(product, name, &value, sizeof(value)));
  }
};

// Everything that the choice of an algorithm depends on.
using Key = std::array<std::int64_t, 18>;
Key key_of(const Gemm& g) {
  return {g.transpose_a,
          g.transpose_b,
          g.accumulate,
          g.M,
          g.N,
          g.K,
          static_cast<std::int64_t>(g.a.dtype),
          static_cast<std::int64_t>(g.b.dtype),
          static_cast<std::int64_t>(g.d.dtype),
          g.a.ld,
          g.b.ld,
          g.d.ld,
          static_cast<std::int64_t>(g.epilogue),
          g.pre.ld,
          alignment_of(g.a.data),
          alignment_of(g.b.data),
          alignment_of(g.d.data),
          std::min(alignment_of(g.pre.data), alignment_of(g.bias))};
}

// Bias and saved pre-activation of this call; their addresses are no part of the plan.
void set_epilogue_pointers(Plan& plan, const Gemm& g) {
  if (g.epilogue == Epilogue::bias || g.epilogue == Epilogue::gelu) plan.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
  if (g.epilogue == Epilogue::gelu || g.epilogue == Epilogue::gelu_derivative)
    plan.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, g.pre.data);
}

// In column-major terms: the first operand is our b, the second our a.
void describe(Plan& plan, const Gemm& g) {
  SFA_CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  plan.set(CUBLASLT_MATMUL_DESC_TRANSA, g.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  plan.set(CUBLASLT_MATMUL_DESC_TRANSB, g.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  plan.set(CUBLASLT_MATMUL_DESC_EPILOGUE, cublas_epilogue(g.epilogue));
  if (g.epilogue == Epilogue::gelu || g.epilogue == Epilogue::gelu_derivative)
    plan.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, g.pre.ld);
  set_epilogue_pointers(plan, g);
  const auto layout = [](cublasLtMatrixLayout_t& to, const Matrix& m, std::int64_t rows, std::int64_t columns) {
    SFA_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&to, cuda_type(m.dtype), static_cast<std::uint64_t>(columns),
                                                static_cast<std::uint64_t>(rows), m.ld));
  };
  layout(plan.a, g.b, g.transpose_b ? g.N : g.K, g.transpose_b ? g.K : g.N);
  layout(plan.b, g.a, g.transpose_a ? g.K : g.M, g.transpose_a ? g.M : g.K);
  layout(plan.d, g.d, g.M, g.N);
}

struct Preference {
  cublasLtMatmulPreference_t handle = nullptr;
  Preference() { SFA_CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&handle)); }
  ~Preference() { cublasLtMatmulPreferenceDestroy(handle); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;
  template <class T>
  void set(cublasLtMatmulPreferenceAttributes_t name, const T& value) {
    SFA_CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(handle, name, &value, sizeof(value)));
  }
};

void choose_algorithm(CudaState& state, Plan& plan, const Gemm& g) {
  Preference preference;
  preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(state.workspace_bytes));
  preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                 static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(g.b.data));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(g.a.data));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(g.d.data));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(g.d.data));
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(state.blas, plan.product, plan.a, plan.b, plan.d, plan.d,
                                                               preference.handle, 1, &found, &count);
  plan.supported = status == CUBLAS_STATUS_SUCCESS && count > 0 && found.state == CUBLAS_STATUS_SUCCESS;
  if (plan.supported) plan.algo = found.algo;
}

}  // namespace

struct GemmPlans {
  std::map<Key, Plan> plans;
};

std::shared_ptr<GemmPlans> make_gemm_plans() {
  return std::make_shared<GemmPlans>();
}

bool gemm(CudaState& state, const Gemm& g) {
  if (g.M == 0 || g.N == 0) return true;
  const auto [entry, is_new] = state.gemm_plans->plans.try_emplace(key_of(g));
  Plan& plan = entry->second;
  if (is_new) {
    describe(plan, g);
    choose_algorithm(state, plan, g);
  }
  if (!plan.supported) {
    require(g.epilogue != Epilogue::none,
            "cuBLASLt has no algorithm for the product of [{}, {}] and [{}, {}] ({} x {} -> {})", g.M, g.K, g.K, g.N,
            name_of(g.a.dtype), name_of(g.b.dtype), name_of(g.d.dtype));
    return false;
  }
  set_epilogue_pointers(plan, g);
  const float alpha = 1.0f, beta = g.accumulate ? 1.0f : 0.0f;
  SFA_CUBLAS_CHECK(cublasLtMatmul(state.blas, plan.product, &alpha, g.b.data, plan.a, g.a.data, plan.b, &beta, g.d.data,
                                  plan.d, g.d.data, plan.d, &plan.algo, state.workspace, state.workspace_bytes,
                                  state.stream));
  return true;
}

}  // namespace sfa
