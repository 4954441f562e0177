// The instances of dense decoding. Head sizes between two widths take the wider one; the rest of its rows is zero.
#include "attention/flash/decode_dense.cuh"

namespace sfa::flash {
namespace {

// Tiles of 8 KB or so a warp; with them in flight in every ring an SM waits for 100 KB and more, four times what the
// latency of memory asks for.
template <int DQK, int DV, int COLUMNS>
struct ConfigOf {
  static constexpr bool kWide = DQK + DV > 256;
  using Type = DecodeConfig<DQK, DV, COLUMNS, DQK + DV <= 128 ? 32 : 16, 4, kWide ? 2 : 3, kWide ? 1 : 2>;
};

template <int DQK, int DV>
cudaError_t launch(const DecodeArgs& args, cudaStream_t stream) {
  const int rows = args.p.shape.H / args.p.shape.G * args.p.shape.Tq;
  return rows <= 8 ? launch_decode<DenseScores<typename ConfigOf<DQK, DV, 1>::Type>>(args, stream)
                   : launch_decode<DenseScores<typename ConfigOf<DQK, DV, 2>::Type>>(args, stream);
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
