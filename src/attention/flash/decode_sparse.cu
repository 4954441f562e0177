// The instances of decoding over sparse keys.
#include "attention/flash/decode_sparse.cuh"

namespace sfa::flash {
namespace {

template <int ROWS, int DV, bool INT8>
using Instance = SparseScores<
    SparseDecodeConfig<ROWS, 256, DV, INT8, (DV > 128 ? 3 : (DV > 64 ? 7 : 4)), (DV > 64 ? 3 : 4), (DV > 64 ? 1 : 2)>>;

template <int ROWS, int DV, bool INT8>
cudaError_t launch_as(const DecodeArgs& args, cudaStream_t stream) {
  return launch_decode<Instance<ROWS, DV, INT8>>(args, stream);
}

template <int ROWS, int DV>
cudaError_t launch(const DecodeArgs& args, cudaStream_t stream) {
  return args.p.v_scale != nullptr ? launch_as<ROWS, DV, true>(args, stream) : launch_as<ROWS, DV, false>(args, stream);
}

template <int ROWS>
cudaError_t launch_rows(const DecodeArgs& args, cudaStream_t stream) {
  const int Dv = args.p.shape.Dv;
  if (Dv <= 64) return launch<ROWS, 64>(args, stream);
  if (Dv <= 128) return launch<ROWS, 128>(args, stream);
  return launch<ROWS, 256>(args, stream);
}

/// Rows of V in bf16 are the longer ones.
template <int DV>
bool fits(int rows, int row_bytes) {
  if (rows <= 1) return DecodeLayout<Instance<1, DV, false>>::fits(row_bytes, rows);
  if (rows <= 2) return DecodeLayout<Instance<2, DV, false>>::fits(row_bytes, rows);
  if (rows <= 4) return DecodeLayout<Instance<4, DV, false>>::fits(row_bytes, rows);
  if (rows <= 8) return DecodeLayout<Instance<8, DV, false>>::fits(row_bytes, rows);
  return DecodeLayout<Instance<16, DV, false>>::fits(row_bytes, std::min(rows, kUnitRows));
}

}  // namespace

bool decode_sparse_fits(const Shape& shape, int row_bytes) {
  const int rows = shape.H / shape.G * shape.Tq;
  if (shape.Dv <= 64) return fits<64>(rows, row_bytes);
  if (shape.Dv <= 128) return fits<128>(rows, row_bytes);
  return fits<256>(rows, row_bytes);
}

cudaError_t decode_sparse(const DecodeArgs& args, cudaStream_t stream) {
  const int rows = args.p.shape.H / args.p.shape.G * args.p.shape.Tq;
  if (rows <= 1) return launch_rows<1>(args, stream);
  if (rows <= 2) return launch_rows<2>(args, stream);
  if (rows <= 4) return launch_rows<4>(args, stream);
  if (rows <= 8) return launch_rows<8>(args, stream);
  return launch_rows<16>(args, stream);
}

}  // namespace sfa::flash
