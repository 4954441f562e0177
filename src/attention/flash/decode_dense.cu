// The instances of dense decoding. Head sizes between two widths take the wider one; the rest of its rows is zero.
#include "attention/flash/decode_dense.cuh"

namespace sfa::flash {
namespace {

// Tiles of 8 KB or so a warp; with them in flight in every ring an SM waits for 100 KB and more, four times what the
// latency of memory asks for.
template <int DQK, int DV, bool INT8, int COLUMNS>
struct ConfigOf {
  static constexpr int kRow = (DQK + DV) * (INT8 ? 1 : 2);  // bytes
  static constexpr bool kWide = kRow > 512;
  using Type = DecodeConfig<DQK, DV, INT8, COLUMNS, kRow <= 256 ? 32 : 16, 4, kWide ? 2 : 3, kWide ? 1 : 2>;
};

template <int DQK, int DV, bool INT8>
cudaError_t launch_as(const DecodeArgs& args, cudaStream_t stream) {
  const int rows = args.p.shape.H / args.p.shape.G * args.p.shape.Tq;
  return rows <= 8 ? launch_decode<DenseScores<typename ConfigOf<DQK, DV, INT8, 1>::Type>>(args, stream)
                   : launch_decode<DenseScores<typename ConfigOf<DQK, DV, INT8, 2>::Type>>(args, stream);
}

template <int DQK, int DV>
cudaError_t launch(const DecodeArgs& args, cudaStream_t stream) {
  return args.p.k_scale != nullptr ? launch_as<DQK, DV, true>(args, stream) : launch_as<DQK, DV, false>(args, stream);
}

}  // namespace

cudaError_t decode_dense(const DecodeArgs& args, cudaStream_t stream) {
  const int Dqk = args.p.shape.Dqk, Dv = args.p.shape.Dv;
  if (Dqk <= 64 && Dv <= 64) return launch<64, 64>(args, stream);
  if (Dqk <= 64 && Dv <= 128) return launch<64, 128>(args, stream);
  if (Dqk <= 128 && Dv <= 64) return launch<128, 64>(args, stream);
  if (Dqk <= 128 && Dv <= 128) return launch<128, 128>(args, stream);
  return launch<256, 256>(args, stream);
}

}  // namespace sfa::flash
