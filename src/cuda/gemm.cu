#include "cuda/gemm.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <sstream>

#include "cuda/launch.h"

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

// The largest power of two up to 256 that divides an address: what cuBLASLt may count on.
std::uint32_t alignment_of(const void* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  return address == 0 ? 256u : static_cast<std::uint32_t>(std::min<std::uintptr_t>(256, address & (~address + 1)));
}

// Of all matrices of a batch.
std::uint32_t alignment_of(const Matrix& m) {
  const std::size_t step = static_cast<std::size_t>(m.step) * size_of(m.dtype);
  return std::min(alignment_of(m.data), alignment_of(reinterpret_cast<const void*>(step)));
}

cublasLtEpilogue_t cublas_epilogue(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::bias:
      return CUBLASLT_EPILOGUE_BIAS;
    case Epilogue::gelu:
      return CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
    case Epilogue::none:
      break;
  }
  return CUBLASLT_EPILOGUE_DEFAULT;
}

struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
  cublasLtMatmulAlgo_t algo{};
  bool supported = false, restored = false;
  int proposed = 0, equal = 0, taken = 0;  // algorithms; those with the bits of the first; the place of the one in use
  float first_us = 0, taken_us = 0;        // 0 when the product was too small to be timed

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
using Key = std::array<std::int64_t, 22>;
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
          alignment_of(g.a),
          alignment_of(g.b),
          alignment_of(g.d),
          std::min(alignment_of(g.pre.data), alignment_of(g.bias)),
          g.batch,
          g.a.step,
          g.b.step,
          g.d.step};
}

// Bias and saved pre-activation of this call; their addresses are no part of the plan.
void set_epilogue_pointers(Plan& plan, const Gemm& g) {
  if (g.epilogue == Epilogue::bias || g.epilogue == Epilogue::gelu) plan.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
  if (g.epilogue == Epilogue::gelu) plan.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, g.pre.data);
}

// In column-major terms: the first operand is our b, the second our a.
void describe(Plan& plan, const Gemm& g) {
  SFA_CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  plan.set(CUBLASLT_MATMUL_DESC_TRANSA, g.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  plan.set(CUBLASLT_MATMUL_DESC_TRANSB, g.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  plan.set(CUBLASLT_MATMUL_DESC_EPILOGUE, cublas_epilogue(g.epilogue));
  if (g.epilogue == Epilogue::gelu) plan.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, g.pre.ld);
  set_epilogue_pointers(plan, g);
  const auto layout = [&](cublasLtMatrixLayout_t& to, const Matrix& m, std::int64_t rows, std::int64_t columns) {
    SFA_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&to, cuda_type(m.dtype), static_cast<std::uint64_t>(columns),
                                                static_cast<std::uint64_t>(rows), m.ld));
    if (g.batch == 1) return;
    const auto count = static_cast<std::int32_t>(g.batch);
    SFA_CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(to, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)));
    SFA_CUBLAS_CHECK(
        cublasLtMatrixLayoutSetAttribute(to, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &m.step, sizeof(m.step)));
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

using Proposals = std::array<cublasLtMatmulHeuristicResult_t, 16>;

std::span<cublasLtMatmulHeuristicResult_t> ask(CudaState& state, const Plan& plan, const Gemm& g, Proposals& found) {
  Preference preference;
  preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(state.workspace_bytes));
  preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                 static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(g.b));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(g.a));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(g.d));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(g.d));
  int count = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(state.blas, plan.product, plan.a, plan.b, plan.d, plan.d, preference.handle,
                                     static_cast<int>(found.size()), found.data(), &count);
  const auto all = std::span(found).first(status == CUBLAS_STATUS_SUCCESS ? static_cast<std::size_t>(count) : 0);
  const auto end =
      std::remove_if(all.begin(), all.end(), [](const auto& f) { return f.state != CUBLAS_STATUS_SUCCESS; });
  return all.first(static_cast<std::size_t>(end - all.begin()));
}

cublasStatus_t launch(CudaState& state, Plan& plan, const Gemm& g, const cublasLtMatmulAlgo_t& algo) {
  set_epilogue_pointers(plan, g);
  const float alpha = 1.0f, beta = g.accumulate ? 1.0f : 0.0f;
  return cublasLtMatmul(state.blas, plan.product, &alpha, g.b.data, plan.a, g.a.data, plan.b, &beta, g.d.data, plan.d,
                        g.d.data, plan.d, &algo, state.workspace, state.workspace_bytes, state.stream);
}

// A number that stands for the bits of the rows x columns elements at `data` (integers, so that the order of the sum
// does not matter).
template <class Bits>
__global__ void fingerprint_kernel(const Bits* data, std::int64_t rows, std::int64_t columns, std::int64_t ld,
                                   unsigned long long* sum) {
  unsigned long long mine = 0;
  for (std::int64_t r = blockIdx.x; r < rows; r += gridDim.x)
    for (std::int64_t c = threadIdx.x; c < columns; c += blockDim.x) {
      unsigned long long x = (static_cast<unsigned long long>(r * columns + c) << 32 | data[r * ld + c]) + 1;
      x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;  // the finalizer of SplitMix64
      x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
      mine += x ^ (x >> 31);
    }
  for (int lane = 16; lane > 0; lane /= 2) mine += __shfl_xor_sync(0xffffffffu, mine, lane);
  if (threadIdx.x % 32 == 0) atomicAdd(sum, mine);
}

// Runs one shape's algorithms. They write where the product itself will write, so that a trial takes no memory of the
// card: what a plain product overwrites may hold anything before, and what an accumulating one adds to is put aside in
// host memory, replaced by zeros, and put back.
class Trial {
 public:
  Trial(CudaState& state, Plan& plan, const Gemm& g) : state_(state), plan_(plan), g_(g) {
    if (!g.accumulate) return;
    const std::size_t pitch = pitch_of(g.d), rows = static_cast<std::size_t>(g.M);
    aside_ = std::make_unique<std::byte[]>(pitch * rows);
    SFA_CUDA_CHECK(
        cudaMemcpy2DAsync(aside_.get(), pitch, g.d.data, pitch, width(), rows, cudaMemcpyDeviceToHost, state.stream));
    SFA_CUDA_CHECK(cudaStreamSynchronize(state.stream));
  }
  // A fault here is one of the whole context and surfaces with the next call.
  ~Trial() {
    if (!aside_) return;
    const std::size_t pitch = pitch_of(g_.d);
    cudaMemcpy2DAsync(g_.d.data, pitch, aside_.get(), pitch, width(), static_cast<std::size_t>(g_.M),
                      cudaMemcpyHostToDevice, state_.stream);
    cudaStreamSynchronize(state_.stream);
  }
  Trial(const Trial&) = delete;
  Trial& operator=(const Trial&) = delete;

  /// False when the algorithm fails; otherwise `bits` stands for what it gives.
  bool run(const cublasLtMatmulAlgo_t& algo, unsigned long long& bits) {
    clear();
    if (launch(state_, plan_, g_, algo) != CUBLAS_STATUS_SUCCESS) return false;
    SFA_CUDA_CHECK(cudaMemsetAsync(state_.trial_bits, 0, sizeof bits, state_.stream));
    add_fingerprint(g_.d);
    if (g_.epilogue == Epilogue::gelu) add_fingerprint({g_.pre.data, g_.d.dtype, g_.pre.ld});
    SFA_CUDA_CHECK(cudaMemcpyAsync(&bits, state_.trial_bits, sizeof bits, cudaMemcpyDeviceToHost, state_.stream));
    SFA_CUDA_CHECK(cudaStreamSynchronize(state_.stream));
    return true;
  }
  /// Microseconds a run, the least of a few.
  float time(const cublasLtMatmulAlgo_t& algo) {
    cudaEvent_t begin{}, end{};
    SFA_CUDA_CHECK(cudaEventCreate(&begin));
    SFA_CUDA_CHECK(cudaEventCreate(&end));
    float least = 0;
    for (int turn = 0; turn < 4; ++turn) {
      SFA_CUDA_CHECK(cudaEventRecord(begin, state_.stream));
      launch(state_, plan_, g_, algo);
      SFA_CUDA_CHECK(cudaEventRecord(end, state_.stream));
      SFA_CUDA_CHECK(cudaEventSynchronize(end));
      float ms = 0;
      SFA_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
      least = turn == 0 ? ms : std::min(least, ms);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return 1000 * least;
  }

 private:
  // Only the columns of d: others may belong to somebody else.
  [[nodiscard]] std::size_t width() const { return static_cast<std::size_t>(g_.N) * size_of(g_.d.dtype); }
  static std::size_t pitch_of(const Matrix& m) { return static_cast<std::size_t>(m.ld) * size_of(m.dtype); }
  void clear() {
    if (!aside_) return;
    SFA_CUDA_CHECK(
        cudaMemset2DAsync(g_.d.data, pitch_of(g_.d), 0, width(), static_cast<std::size_t>(g_.M), state_.stream));
  }
  void add_fingerprint(const Matrix& m) {
    const auto go = [&]<class Bits>(const Bits* data) {
      fingerprint_kernel<<<1024, 256, 0, state_.stream>>>(data, g_.M, g_.N, m.ld, state_.trial_bits);
    };
    if (size_of(m.dtype) == 2)
      go(static_cast<const std::uint16_t*>(m.data));
    else
      go(static_cast<const std::uint32_t*>(m.data));
    SFA_LAUNCH_CHECK();
  }

  CudaState& state_;
  Plan& plan_;
  const Gemm& g_;
  std::unique_ptr<std::byte[]> aside_;
};

// Below this a product takes a few microseconds whatever the algorithm.
constexpr double kWorthATrial = 4e9;

bool being_captured(const CudaState& state) {
  cudaStreamCaptureStatus status{};
  SFA_CUDA_CHECK(cudaStreamIsCapturing(state.stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

// A saved algorithm, when the library still takes it for this product.
bool take_saved(CudaState& state, Plan& plan, const cublasLtMatmulAlgo_t& algo) {
  cublasLtMatmulHeuristicResult_t result{};
  const cublasStatus_t status =
      cublasLtMatmulAlgoCheck(state.blas, plan.product, plan.a, plan.b, plan.d, plan.d, &algo, &result);
  if (status != CUBLAS_STATUS_SUCCESS || result.state != CUBLAS_STATUS_SUCCESS ||
      result.workspaceSize > state.workspace_bytes)
    return false;
  plan.algo = algo;
  plan.supported = plan.restored = true;
  return true;
}

void choose_algorithm(CudaState& state, Plan& plan, const Gemm& g) {
  Proposals memory;
  const auto found = ask(state, plan, g, memory);
  plan.supported = !found.empty();
  plan.proposed = static_cast<int>(found.size());
  if (!plan.supported) return;
  plan.algo = found[0].algo;
  const double operations = 2.0 * static_cast<double>(g.M) * static_cast<double>(g.N) * static_cast<double>(g.K);
  if (found.size() == 1 || g.batch > 1 || operations < kWorthATrial || being_captured(state)) return;
  // A product that writes over what it reads can't be repeated.
  for (const void* read : {static_cast<const void*>(g.a.data), static_cast<const void*>(g.b.data), g.bias})
    if (read == g.d.data) return;
  Trial trial(state, plan, g);
  unsigned long long first = 0, bits = 0;
  if (!trial.run(found[0].algo, first)) return;
  plan.first_us = plan.taken_us = trial.time(found[0].algo);
  plan.equal = 1;
  for (std::size_t i = 1; i < found.size(); ++i) {
    if (!trial.run(found[i].algo, bits) || bits != first) continue;
    ++plan.equal;
    const float us = trial.time(found[i].algo);
    if (us >= plan.taken_us) continue;
    plan.taken_us = us;
    plan.taken = static_cast<int>(i);
    plan.algo = found[i].algo;
  }
}

}  // namespace

struct GemmPlans {
  std::map<Key, Plan> plans;
  std::map<Key, cublasLtMatmulAlgo_t> saved;  // from an earlier run
};

std::shared_ptr<GemmPlans> make_gemm_plans() {
  return std::make_shared<GemmPlans>();
}

bool gemm(CudaState& state, const Gemm& g) {
  if (g.M == 0 || g.N == 0 || g.batch == 0) return true;
  const auto [entry, is_new] = state.gemm_plans->plans.try_emplace(key_of(g));
  Plan& plan = entry->second;
  if (is_new) {
    describe(plan, g);
    const auto saved = state.gemm_plans->saved.find(entry->first);
    if (saved == state.gemm_plans->saved.end() || !take_saved(state, plan, saved->second))
      choose_algorithm(state, plan, g);
  }
  if (!plan.supported) {
    require(g.epilogue != Epilogue::none,
            "cuBLASLt has no algorithm for the product of [{}, {}] and [{}, {}] ({} x {} -> {})", g.M, g.K, g.K, g.N,
            name_of(g.a.dtype), name_of(g.b.dtype), name_of(g.d.dtype));
    return false;
  }
  SFA_CUBLAS_CHECK(launch(state, plan, g, plan.algo));
  return true;
}

namespace {

// What a choice is good for.
std::string maker() {
  int device = 0;
  cudaDeviceProp card{};
  SFA_CUDA_CHECK(cudaGetDevice(&device));
  SFA_CUDA_CHECK(cudaGetDeviceProperties(&card, device));
  return fmt::format("cuBLASLt {} on {}", cublasLtGetVersion(), card.name);
}

}  // namespace

std::string saved_choices(const CudaState& state) {
  std::string text = maker() + "\n";
  // What was restored and not met again in this run is still part of the run.
  std::map<Key, cublasLtMatmulAlgo_t> all = state.gemm_plans->saved;
  for (const auto& [key, plan] : state.gemm_plans->plans)
    if (plan.supported) all[key] = plan.algo;
  for (const auto& [key, algo] : all) {
    text += fmt::format("{}", fmt::join(key, " "));
    for (const std::uint64_t word : algo.data) text += fmt::format(" {:x}", word);
    text += "\n";
  }
  return text;
}

bool restore_choices(CudaState& state, const std::string& text) {
  std::istringstream in(text);
  std::string line;
  if (!std::getline(in, line) || line != maker()) return false;
  std::map<Key, cublasLtMatmulAlgo_t> all;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    Key key{};
    cublasLtMatmulAlgo_t algo{};
    for (auto& k : key) words >> k;
    words >> std::hex;
    for (auto& word : algo.data) words >> word;
    if (words.fail() || !(words >> std::ws).eof()) return false;
    all[key] = algo;
  }
  state.gemm_plans->saved = std::move(all);
  return true;
}

std::vector<std::string> gemm_report(const CudaState& state) {
  constexpr const char* kEpilogues[] = {"", " bias", " gelu"};
  std::vector<std::string> lines;
  for (const auto& [key, plan] : state.gemm_plans->plans)
    lines.push_back(fmt::format(
        "{} x {} x {}{}{}{}: {} proposed, {} equal, number {} taken, {:.1f} us (first {:.1f}){}", key[3], key[4],
        key[5], key[0] != 0 ? " a'" : "", key[1] != 0 ? " b'" : "", kEpilogues[key[12]], plan.proposed, plan.equal,
        plan.taken, plan.taken_us, plan.first_us, plan.restored ? ", as saved" : ""));
  return lines;
}

}  // namespace sfa
