// The MPI backend. Sums are made here and not by MPI_Allreduce, whose order of additions differs between libraries,
// sizes and machines: every rank receives the others' pieces of its part and adds them in the order of the ranks.
// Pieces bound the memory for what arrives.
#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "core/error.h"
#include "dist/mpi_session.h"

namespace sfa::dist {
namespace {

constexpr std::int64_t kPieceBytes = std::int64_t{1} << 18;

void check(int status, const char* what) {
  if (status == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(status, text.data(), &length);
  fail("MPI could not {}: {}", what, text.data());
}

class Session final : public MpiSession {
 public:
  explicit Session(const Launch& launch) {
    int provided = 0, size = 0, rank = 0;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "start");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (provided < MPI_THREAD_FUNNELED || size != launch.size || rank != launch.rank) {
      require(provided >= MPI_THREAD_FUNNELED, "this MPI library does not allow threads beside the one that calls it");
      fail(
          "{} says that this is rank {} of {}, but MPI says {} of {}: is {} of another MPI than this program was built "
          "with?",
          launch.launcher, launch.rank, launch.size, rank, size, launch.launcher);
    }
  }
  ~Session() override { MPI_Finalize(); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  std::string broadcast(std::string text) override {
    std::uint64_t bytes = text.size();
    check(MPI_Bcast(&bytes, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD), "broadcast");
    text.resize(bytes);
    check(MPI_Bcast(text.data(), static_cast<int>(bytes), MPI_CHAR, 0, MPI_COMM_WORLD), "broadcast");
    return text;
  }
};

// Waiting yields the core: other ranks may share it. A rank that never comes is found by the control channel, which
// ends the process from another thread.
class Requests {
 public:
  void send(const void* data, std::int64_t bytes, int to) {
    all_.emplace_back();
    check(MPI_Isend(data, static_cast<int>(bytes), MPI_BYTE, to, kTag, MPI_COMM_WORLD, &all_.back()), "send");
  }
  void receive(void* data, std::int64_t bytes, int from) {
    all_.emplace_back();
    check(MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, from, kTag, MPI_COMM_WORLD, &all_.back()), "receive");
  }
  void wait() {
    int done = 0;
    for (int spins = 0;; ++spins) {
      check(MPI_Testall(static_cast<int>(all_.size()), all_.data(), &done, MPI_STATUSES_IGNORE), "wait for a rank");
      if (done != 0) break;
      if (spins < 2000)
        ::sched_yield();
      else
        std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    all_.clear();
  }

 private:
  static constexpr int kTag = 1;
  std::vector<MPI_Request> all_;
};

// One element of each type as it is added, and the way back.
template <class T>
struct Adder {
  using Sum = T;
  static Sum load(const T* p) { return *p; }
  static void store(T* p, Sum s) { *p = s; }
};
template <>
struct Adder<std::uint16_t> {  // bf16
  using Sum = float;
  static Sum load(const std::uint16_t* p) { return bf16_value(*p); }
  static void store(std::uint16_t* p, Sum s) { *p = bf16_bits(s); }
};

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(const Launch& launch, std::unique_ptr<ControlChannel> control, std::shared_ptr<MpiSession> session)
      : Communicator(launch, std::move(control)), session_(std::move(session)) {}
  ~MpiCommunicator() override { control_.reset(); }  // all ranks have come here before MPI ends

  [[nodiscard]] std::string backend() const override { return "MPI"; }

  void all_reduce(Context&, const Tensor& t) override {
    check_place(t);
    switch (t.dtype) {
      case DType::f32:
        return sum<float>(t.data, t.numel());
      case DType::bf16:
        return sum<std::uint16_t>(t.data, t.numel());
      case DType::i64:
        return sum<std::int64_t>(t.data, t.numel());
      default:
        fail("internal error: a sum over ranks of {}", t);
    }
  }
  void all_reduce_f64(Context&, const Tensor& bits) override {
    check_place(bits);
    require(bits.dtype == DType::i64, "internal error: a sum of doubles over ranks of {}", bits);
    sum<double>(bits.data, bits.numel());
  }
  void reduce_scatter(Context&, const Tensor& t, const std::vector<FlatRange>& parts) override {
    check_place(t);
    check_parts(t, parts);
    if (t.dtype == DType::f32)
      scatter(static_cast<float*>(t.data), parts);
    else if (t.dtype == DType::bf16)
      scatter(static_cast<std::uint16_t*>(t.data), parts);
    else
      fail("internal error: a sum over ranks of {}", t);
  }
  void all_gather(Context&, const Tensor& t, const std::vector<FlatRange>& parts) override {
    check_place(t);
    check_parts(t, parts);
    gather(static_cast<std::byte*>(t.data), static_cast<std::int64_t>(size_of(t.dtype)), parts);
  }
  void broadcast(Context&, const Tensor& t, int root) override {
    check_place(t);
    std::vector<FlatRange> parts(static_cast<std::size_t>(size()));
    parts[static_cast<std::size_t>(root)] = {0, t.bytes()};
    gather(static_cast<std::byte*>(t.data), 1, parts);
  }
  void exchange(Context&, const Tensor& out, int to, const Tensor& in, int from) override {
    if (!in.empty()) check_place(in);
    if (!out.empty()) check_place(out);
    // Messages are counted in 31 bits.
    constexpr std::int64_t kMost = std::int64_t{1} << 30;
    const std::int64_t n = out.empty() ? 0 : out.bytes(), m = in.empty() ? 0 : in.bytes();
    for (std::int64_t at = 0; at < n; at += kMost)
      requests_.send(static_cast<const std::byte*>(out.data) + at, std::min(kMost, n - at), to);
    for (std::int64_t at = 0; at < m; at += kMost)
      requests_.receive(static_cast<std::byte*>(in.data) + at, std::min(kMost, m - at), from);
    requests_.wait();
  }
  void join(Context&) override {}

 private:
  static void check_place(const Tensor& t) {
    require(t.device == Device::cpu && t.contiguous() && t.data != nullptr,
            "internal error: ranks over MPI exchange tensors in CPU memory, not {}", t);
  }
  void check_parts(const Tensor& t, const std::vector<FlatRange>& parts) const {
    require(std::cmp_equal(parts.size(), size()), "internal error: {} parts for {} ranks", parts.size(), size());
    for (const FlatRange& p : parts)
      require(p.begin >= 0 && p.count >= 0 && p.end() <= t.numel(), "internal error: part [{}, {}) of {}", p.begin,
              p.end(), t);
  }

  template <class T>
  void sum(void* data, std::int64_t n) {
    const std::vector<FlatRange> parts = split_evenly(n, size(), 64);
    scatter(static_cast<T*>(data), parts);
    gather(static_cast<std::byte*>(data), static_cast<std::int64_t>(sizeof(T)), parts);
  }

  // Piece by piece: mine arrives from all others while theirs leave.
  template <class T>
  void scatter(T* data, const std::vector<FlatRange>& parts) {
    constexpr auto kPiece = kPieceBytes / static_cast<std::int64_t>(sizeof(T));
    const auto me = static_cast<std::size_t>(rank());
    arrived_.resize(static_cast<std::size_t>(size()) * kPieceBytes);
    std::int64_t longest = 0;
    for (const FlatRange& p : parts) longest = std::max(longest, p.count);
    for (std::int64_t at = 0; at < longest; at += kPiece) {
      const auto piece = [&](const FlatRange& p) {
        return FlatRange{p.begin + at, std::clamp<std::int64_t>(p.count - at, 0, kPiece)};
      };
      const FlatRange mine = piece(parts[me]);
      for (std::size_t r = 0; r < parts.size(); ++r) {
        if (r == me) continue;
        const FlatRange theirs = piece(parts[r]);
        const auto other = static_cast<int>(r);
        if (mine.count > 0) requests_.receive(place<T>(r), mine.count * static_cast<std::int64_t>(sizeof(T)), other);
        if (theirs.count > 0)
          requests_.send(data + theirs.begin, theirs.count * static_cast<std::int64_t>(sizeof(T)), other);
      }
      requests_.wait();
      add(data + mine.begin, mine.count);
    }
  }

  template <class T>
  T* place(std::size_t r) {
    return reinterpret_cast<T*>(arrived_.data() + r * kPieceBytes);
  }

  template <class T>
  void add(T* mine, std::int64_t n) {
    using Add = Adder<T>;
    std::vector<const T*> from;
    for (std::size_t r = 0; std::cmp_less(r, size()); ++r)
      from.push_back(std::cmp_equal(r, rank()) ? mine : place<T>(r));
    for (std::int64_t i = 0; i < n; ++i) {
      typename Add::Sum s = Add::load(from[0] + i);
      for (std::size_t r = 1; r < from.size(); ++r) s += Add::load(from[r] + i);
      Add::store(mine + i, s);
    }
  }

  void gather(std::byte* data, std::int64_t element, const std::vector<FlatRange>& parts) {
    constexpr std::int64_t kMost = std::int64_t{1} << 30;
    const auto me = static_cast<std::size_t>(rank());
    const auto each = [&](const FlatRange& p, auto&& message) {
      for (std::int64_t at = 0; at < p.count * element; at += kMost)
        message(data + p.begin * element + at, std::min(kMost, p.count * element - at));
    };
    for (std::size_t r = 0; r < parts.size(); ++r) {
      if (r == me) continue;
      const auto other = static_cast<int>(r);
      each(parts[r], [&](std::byte* to, std::int64_t bytes) { requests_.receive(to, bytes, other); });
      each(parts[me], [&](const std::byte* from, std::int64_t bytes) { requests_.send(from, bytes, other); });
    }
    requests_.wait();
  }

  std::shared_ptr<MpiSession> session_;
  Requests requests_;
  std::vector<std::byte> arrived_;  // a piece from every rank
};

}  // namespace

std::shared_ptr<MpiSession> start_mpi(const Launch& launch) {
  return std::make_shared<Session>(launch);
}

std::unique_ptr<Communicator> make_mpi_communicator(const Launch& launch, std::unique_ptr<ControlChannel> control,
                                                    std::shared_ptr<MpiSession> session) {
  return std::make_unique<MpiCommunicator>(launch, std::move(control), std::move(session));
}

}  // namespace sfa::dist
