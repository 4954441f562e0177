// The driver's encoder is found at run time, so that nothing links libcuda and the library loads on machines without
// it.
#include "cuda/tensor_map.h"

#include <cuda_runtime.h>

#include <string>

#include "core/error.h"

namespace sfa {
namespace {

using EncodeFunction = decltype(&cuTensorMapEncodeTiled);

EncodeFunction find_encoder() {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
  require(status == cudaSuccess && found == cudaDriverEntryPointSuccess && entry != nullptr,
          "the CUDA driver has no cuTensorMapEncodeTiled ({}); driver 525 or newer is needed",
          cudaGetErrorString(status));
  return reinterpret_cast<EncodeFunction>(entry);
}

struct TypeInfo {
  CUtensorMapDataType code;
  std::int64_t bytes;
};

TypeInfo info_of(TensorMapType type) {
  switch (type) {
    case TensorMapType::bf16:
      return {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2};
    case TensorMapType::f32:
      return {CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4};
    case TensorMapType::u32:
      return {CU_TENSOR_MAP_DATA_TYPE_UINT32, 4};
  }
  fail("internal error: unknown tensor map type");
}

CUtensorMapSwizzle swizzle_of(int bytes) {
  switch (bytes) {
    case 0:
      return CU_TENSOR_MAP_SWIZZLE_NONE;
    case 32:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case 64:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case 128:
      return CU_TENSOR_MAP_SWIZZLE_128B;
    default:
      fail("internal error: tensor map swizzle of {} bytes; 0, 32, 64 and 128 exist", bytes);
  }
}

}  // namespace

CUtensorMap make_tensor_map(const TensorMapSpec& spec) {
  static const EncodeFunction encode = find_encoder();
  const TypeInfo type = info_of(spec.type);
  cuuint64_t extent[5];
  cuuint64_t stride_bytes[5];
  cuuint32_t box[5];
  cuuint32_t element_stride[5];
  for (int i = 0; i < spec.rank; ++i) {
    extent[i] = static_cast<cuuint64_t>(spec.extent[i]);
    box[i] = static_cast<cuuint32_t>(spec.box[i]);
    element_stride[i] = 1;
    if (i > 0) stride_bytes[i - 1] = static_cast<cuuint64_t>(spec.stride[i] * type.bytes);
  }
  CUtensorMap map{};
  const CUresult result =
      encode(&map, type.code, static_cast<cuuint32_t>(spec.rank), const_cast<void*>(spec.data), extent, stride_bytes,
             box, element_stride, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_of(spec.swizzle_bytes),
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    std::string shape;
    for (int i = 0; i < spec.rank; ++i) shape += fmt::format(" {} (stride {})", spec.extent[i], spec.stride[i]);
    fail(
        "the driver refused a tensor map (code {}) of extents{}; the address and every outer stride must be multiples "
        "of "
        "16 bytes",
        static_cast<int>(result), shape);
  }
  return map;
}

}  // namespace sfa
