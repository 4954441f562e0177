// Host side of the projection with selection: checks, tensor maps, tiles, launch.
#include <cuda_runtime.h>

#include <algorithm>

#include "attention/flash/project_select.h"
#include "attention/flash/project_select_kernel.cuh"
#include "core/error.h"
#include "cuda/tensor_map.h"

namespace sfa::flash {
namespace {

constexpr int kCluster = 2, kStages = 3, kLag = 1;
constexpr int kMostKept = 16;  // features of a sorting network
/// Column tiles whose weights stay in L2 while rows pass by.
constexpr int kColumnGroup = 12;

template <int kD, int kKeep>
using Config = ProjectConfig<kD, kKeep, kCluster, kStages, kLag>;

constexpr int round_up(int x, int to) {
  return (x + to - 1) / to * to;
}

/// Rows of every entry follow those of the entry before, in every output: then entries can be tiled as one.
bool flattens(const ProjectSelectParams& p) {
  const auto follows = [&](const Strides& s) { return s.batch == s.token * p.T; };
  return p.B > 1 && (p.q_compressed == nullptr || p.T % 64 == 0) && (p.q_dense == nullptr || follows(p.q_stride)) &&
         follows(p.k_stride) && follows(p.v_stride);
}

struct Entries {
  int count, tokens;
};

ProjectArgs make_args(const ProjectSelectParams& p, const Entries& entries) {
  ProjectArgs a;
  a.selected[0] = {static_cast<unsigned short*>(p.q_values), p.q_indices, p.H, p.k_q};
  a.selected[1] = {static_cast<unsigned short*>(p.k_values), p.k_indices, p.G, p.k_k};
  a.compressed = static_cast<unsigned char*>(p.q_compressed);
  a.bias = static_cast<const unsigned short*>(p.bias);
  a.two_of_four = p.rule == Selection::topk_2of4;
  a.width[0] = p.H * p.D, a.width[1] = p.G * p.D, a.width[2] = p.G * p.Dv;
  a.begin[0] = 0, a.begin[1] = a.width[0], a.begin[2] = a.width[0] + a.width[1];
  a.row = a.begin[2] + a.width[2];
  a.columns = 0;
  for (int i = 0; i < 3; ++i) {
    a.tiles[i] = (a.width[i] + kProjectColumns - 1) / kProjectColumns;
    a.columns += a.tiles[i];
  }
  const int groups = (a.columns + kColumnGroup - 1) / kColumnGroup;
  a.columns_a_group = (a.columns + groups - 1) / groups;
  a.T = entries.tokens;
  a.entry_tokens = round_up(p.T, 64);
  a.units_an_entry = round_up(entries.tokens, kProjectRows * kCluster) / (kProjectRows * kCluster);
  a.row_units = a.units_an_entry * entries.count;
  a.k_blocks = (p.I + 63) / 64;
  return a;
}

/// [entries, tokens, columns] bf16 in boxes of 64 columns by `box` rows.
CUtensorMap rows_map(const void* data, int columns, const Strides& stride, const Entries& entries, int box) {
  TensorMapSpec spec;
  spec.data = data;
  spec.rank = 4;
  const std::int64_t extents[4] = {columns, entries.tokens, entries.count, 1};
  const std::int64_t strides[4] = {1, stride.token, stride.batch, stride.batch};
  std::copy_n(extents, 4, spec.extent);
  std::copy_n(strides, 4, spec.stride);
  spec.box[0] = 64;
  spec.box[1] = box;
  return make_tensor_map(spec);
}

/// The same as an operand of three dimensions.
CUtensorMap operand_map(const void* data, int features, const Entries& entries, int box) {
  TensorMapSpec spec;
  spec.data = data;
  spec.rank = 3;
  const std::int64_t extents[3] = {features, entries.tokens, entries.count};
  const std::int64_t strides[3] = {1, features, std::int64_t{features} * entries.tokens};
  std::copy_n(extents, 3, spec.extent);
  std::copy_n(strides, 3, spec.stride);
  spec.box[0] = 64;
  spec.box[1] = box;
  return make_tensor_map(spec);
}

template <class Config>
cudaError_t launch(const ProjectSelectParams& p, cudaStream_t stream) {
  const Entries entries = flattens(p) ? Entries{1, p.B * p.T} : Entries{p.B, p.T};
  const ProjectArgs args = make_args(p, entries);
  ProjectMaps maps;
  maps.input = operand_map(p.x, p.I, entries, kProjectRows);
  maps.weight = operand_map(p.weight, p.I, {1, args.row}, kProjectColumns / kCluster);
  maps.rows[1] = rows_map(p.k_dense, args.width[1], p.k_stride, entries, Config::kPassRows);
  maps.rows[0] = p.q_dense == nullptr ? maps.rows[1]  // not used
                                      : rows_map(p.q_dense, args.width[0], p.q_stride, entries, Config::kPassRows);
  maps.rows[2] = rows_map(p.v, args.width[2], p.v_stride, entries, 32);
  int device = 0, multiprocessors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  constexpr int kShared = sizeof(ProjectStorage<Config>);
  static_assert(kShared <= 227 * 1024, "shared memory exceeded");
  const auto kernel = project_select_kernel<Config>;
  if (status == cudaSuccess)
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (status != cudaSuccess) return status;
  const int clusters = std::min(args.row_units * args.columns, multiprocessors / kCluster);
  kernel<<<static_cast<unsigned>(clusters * kCluster), Config::kThreads, kShared, stream>>>(args, maps);
  return cudaGetLastError();
}

template <int kD>
cudaError_t launch_for_k(const ProjectSelectParams& p, cudaStream_t stream) {
  return std::max(p.k_q, p.k_k) <= 8 ? launch<Config<kD, 8>>(p, stream) : launch<Config<kD, kMostKept>>(p, stream);
}

void require_pointer(const void* pointer, const char* name) {
  require(pointer != nullptr && reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0,
          "projection with selection: {} must be set and 16-byte aligned", name);
}

}  // namespace

bool project_select_supported(const ProjectSelectParams& p) {
  const int most = p.rule == Selection::topk_2of4 ? p.D / 2 : p.D;
  return selection_supported(p.D) && p.Dv > 0 && p.Dv % 64 == 0 && p.k_q >= 1 && p.k_q <= std::min(kMostKept, most) &&
         p.k_k >= 1 && p.k_k <= kMostKept && p.I % 8 == 0 && p.I >= 64 * kStages && p.H > 0 && p.G > 0;
}

void project_select(const ProjectSelectParams& p, void* stream) {
  require(project_select_supported(p),
          "projection with selection has no kernel for heads of {} and {} features, {} and {} active, and rows of {}",
          p.D, p.Dv, p.k_q, p.k_k, p.I);
  if (p.B == 0 || p.T == 0) return;
  require((p.q_dense == nullptr) != (p.q_compressed == nullptr) &&
              (p.q_compressed == nullptr || p.rule == Selection::topk_2of4),
          "projection with selection: queries leave as rows or, under topk_2of4, compressed");
  require_pointer(p.x, "x");
  require_pointer(p.weight, "weight");
  if (p.bias != nullptr) require_pointer(p.bias, "bias");
  require_pointer(p.q_dense != nullptr ? p.q_dense : p.q_compressed, "q");
  require_pointer(p.k_dense, "k");
  require_pointer(p.v, "v");
  require_pointer(p.q_values, "q_values");
  require_pointer(p.q_indices, "q_indices");
  require_pointer(p.k_values, "k_values");
  require_pointer(p.k_indices, "k_indices");
  require((p.q_dense == nullptr || p.q_stride.head == p.D) && p.k_stride.head == p.D && p.v_stride.head == p.Dv,
          "projection with selection: heads of a token must be neighbours");
  auto* queue = static_cast<cudaStream_t>(stream);
  const cudaError_t status = p.D == 64 ? launch_for_k<64>(p, queue) : launch_for_k<128>(p, queue);
  require(status == cudaSuccess, "projection with selection failed to launch: {}", cudaGetErrorString(status));
}

}  // namespace sfa::flash
