#include "dist/rendezvous.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <sstream>
#include <thread>
#include <utility>

#include "core/error.h"

namespace sfa::dist {
namespace {

using Clock = std::chrono::steady_clock;

// For a whole hello. A connection may be a stranger's (a port scanner, another service at the same number), which says
// less, or nothing. Rank 0 hears one after the other, so ranks wait a little longer for it.
constexpr double kHelloSeconds = 2, kAnswerSeconds = 5;
constexpr std::uint64_t kLongestHello = 4096, kLongestFrame = std::uint64_t{1} << 30;

struct Place {
  std::uint64_t cookie = 0;  // tells this job from strangers at the same port
  int port = 0;
  std::vector<std::string> addresses;
};

std::string text_of(const Place& p) {
  return fmt::format("sfa {} {} {}", p.cookie, p.port, fmt::join(p.addresses, " "));
}

bool parse(const std::string& text, Place& p) {
  std::istringstream in(text);
  std::string magic;
  in >> magic >> p.cookie >> p.port;
  p.addresses.clear();
  for (std::string a; in >> a;) p.addresses.push_back(a);
  return magic == "sfa" && p.port > 0 && !p.addresses.empty();
}

// Loopback last: it is right for ranks on this machine alone, and theirs are found by any other address too.
std::vector<std::string> own_addresses() {
  std::vector<std::string> all;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) == 0) {
    for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
      if (i->ifa_addr == nullptr || i->ifa_addr->sa_family != AF_INET) continue;
      if ((i->ifa_flags & IFF_UP) == 0 || (i->ifa_flags & IFF_LOOPBACK) != 0) continue;
      sockaddr_in address{};
      std::memcpy(&address, i->ifa_addr, sizeof address);
      std::array<char, INET_ADDRSTRLEN> text{};
      if (::inet_ntop(AF_INET, &address.sin_addr, text.data(), text.size()) != nullptr) all.emplace_back(text.data());
    }
    ::freeifaddrs(list);
  }
  all.emplace_back("127.0.0.1");
  return all;
}

void set_options(int fd, double timeout_s) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  timeval limit{};
  limit.tv_sec = static_cast<time_t>(timeout_s) + 1;
  ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

Socket listen_at(int port, int& chosen) {
  Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  require(socket.open(), "no socket can be opened: {}", std::strerror(errno));
  const int on = 1;
  ::setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  socklen_t length = sizeof address;
  const bool bound = ::bind(socket.fd(), reinterpret_cast<sockaddr*>(&address), length) == 0 &&
                     ::listen(socket.fd(), 1024) == 0 &&
                     ::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&address), &length) == 0;
  require(bound, "rank 0 cannot listen on port {}: {}", port, std::strerror(errno));
  chosen = ntohs(address.sin_port);
  return socket;
}

// One attempt, at most two seconds.
Socket connect_to(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return Socket();
  Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  bool there = false;
  if (socket.open()) {
    there = ::connect(socket.fd(), found->ai_addr, found->ai_addrlen) == 0;
    if (!there && errno == EINPROGRESS) {
      pollfd wait{socket.fd(), POLLOUT, 0};
      int error = 0;
      socklen_t length = sizeof error;
      there = ::poll(&wait, 1, 2000) == 1 && ::getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &length) == 0 &&
              error == 0;
    }
  }
  ::freeaddrinfo(found);
  if (!there) return Socket();
  const int flags = ::fcntl(socket.fd(), F_GETFL);
  ::fcntl(socket.fd(), F_SETFL, flags & ~O_NONBLOCK);
  return socket;
}

std::string hello(const Launch& launch, std::uint64_t cookie) {
  return fmt::format("{} {} {} {} {}", cookie, launch.size, launch.rank, ::getpid(), host_name());
}

Clock::time_point in_seconds(double seconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// So many bytes, before the deadline where there is one.
bool take(const Socket& socket, char* to, std::size_t bytes, std::optional<Clock::time_point> deadline) {
  while (bytes > 0) {
    if (deadline) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(*deadline - Clock::now()).count();
      pollfd wait{socket.fd(), POLLIN, 0};
      const int ready = left > 0 ? ::poll(&wait, 1, static_cast<int>(left)) : 0;
      if (ready < 0 && errno == EINTR) continue;
      if (ready != 1) return false;
    }
    const ssize_t n = ::recv(socket.fd(), to, bytes, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    to += n;
    bytes -= static_cast<std::size_t>(n);
  }
  return true;
}

bool receive(const Socket& socket, Frame& frame, std::uint64_t longest, std::optional<Clock::time_point> deadline) {
  std::array<char, 24> head{};
  if (!take(socket, head.data(), head.size(), deadline)) return false;
  std::uint32_t kind = 0;
  std::uint64_t length = 0;
  std::memcpy(&kind, head.data(), 4);
  std::memcpy(&frame.lane, head.data() + 4, 4);
  std::memcpy(&frame.sequence, head.data() + 8, 8);
  std::memcpy(&length, head.data() + 16, 8);
  if (kind > static_cast<std::uint32_t>(FrameKind::goodbye) || length > longest) return false;
  frame.kind = static_cast<FrameKind>(kind);
  frame.payload.resize(length);
  return take(socket, frame.payload.data(), length, deadline);
}

bool receive_hello(const Socket& socket, Frame& frame, Clock::time_point deadline) {
  return receive(socket, frame, kLongestHello, deadline) && frame.kind == FrameKind::hello;
}

// True, and the peer's name, when the one who connected belongs to this job and is still there: a rank that had to wait
// too long for the answer has dropped this connection, and comes again.
bool welcome(const Socket& socket, std::uint64_t cookie, const Launch& launch, Clock::time_point deadline, Peer& peer) {
  Frame frame;
  if (!receive_hello(socket, frame, in_seconds(kHelloSeconds))) return false;
  std::istringstream in(frame.payload);
  std::uint64_t theirs = 0;
  int size = 0;
  in >> theirs >> size >> peer.rank >> peer.pid >> peer.host;
  if (!in || theirs != cookie) return false;
  require(size == launch.size && peer.rank > 0 && peer.rank < size,
          "a process on {} says that it is rank {} of {}; rank 0 was started as one of {}", peer.host, peer.rank, size,
          launch.size);
  return send_frame(socket, {FrameKind::hello, 0, 0, hello(launch, cookie)}) && receive_hello(socket, frame, deadline);
}

std::vector<Socket> gather_ranks(const Socket& listener, const Place& place, const Meeting& meeting,
                                 std::vector<Peer>& peers) {
  const Launch& launch = meeting.launch;
  std::vector<Socket> sockets(static_cast<std::size_t>(launch.size - 1));
  const auto deadline = in_seconds(meeting.timeout_s);
  for (int there = 1; there < launch.size;) {
    std::string missing;
    for (int r = 1; r < launch.size && missing.size() < 60; ++r)
      if (!sockets[static_cast<std::size_t>(r - 1)].open())
        missing += (missing.empty() ? "" : ", ") + std::to_string(r);
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd wait{listener.fd(), POLLIN, 0};
    require(left > 0, "{} of {} ranks have reached rank 0 on {} within {} s; missing: {}", there, launch.size,
            host_name(), meeting.timeout_s, missing);
    if (::poll(&wait, 1, static_cast<int>(left)) != 1) continue;
    Socket socket(::accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC));
    Peer peer;
    if (!socket.open()) continue;
    set_options(socket.fd(), meeting.timeout_s);
    if (!welcome(socket, place.cookie, launch, deadline, peer)) continue;
    Socket& slot = sockets[static_cast<std::size_t>(peer.rank - 1)];
    require(!slot.open(), "two processes say that they are rank {} of {}", peer.rank, launch.size);
    slot = std::move(socket);
    peers[static_cast<std::size_t>(peer.rank)] = peer;
    ++there;
  }
  return sockets;
}

// Hello, rank 0's answer, and a second hello: this rank has the answer.
bool introduce(const Socket& socket, const Place& place, const Meeting& meeting, Clock::time_point deadline,
               std::vector<Peer>& peers) {
  set_options(socket.fd(), meeting.timeout_s);
  Frame frame{FrameKind::hello, 0, 0, hello(meeting.launch, place.cookie)};
  const auto answered = std::min(deadline, in_seconds(kAnswerSeconds));
  if (!send_frame(socket, frame) || !receive_hello(socket, frame, answered)) return false;
  std::istringstream in(frame.payload);
  std::uint64_t cookie = 0;
  int size = 0;
  in >> cookie >> size >> peers[0].rank >> peers[0].pid >> peers[0].host;
  return in && cookie == place.cookie && send_frame(socket, {FrameKind::hello, 0, 0, {}});
}

std::string read_place(const std::string& file) {
  std::ifstream in(file);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

void write_place(const std::string& file, const std::string& text) {
  const std::string temporary = file + ".tmp";
  std::ofstream(temporary) << text;
  std::error_code error;
  std::filesystem::rename(temporary, file, error);
  require(!error, "SFA_RENDEZVOUS={}: can't be written: {}", file, error.message());
}

}  // namespace

Socket::~Socket() {
  if (fd_ >= 0) ::close(fd_);
}
Socket::Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
Socket& Socket::operator=(Socket&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

bool send_frame(const Socket& socket, const Frame& frame) {
  std::string bytes(24, '\0');
  const auto kind = static_cast<std::uint32_t>(frame.kind);
  const std::uint64_t length = frame.payload.size();
  std::memcpy(bytes.data(), &kind, 4);
  std::memcpy(bytes.data() + 4, &frame.lane, 4);
  std::memcpy(bytes.data() + 8, &frame.sequence, 8);
  std::memcpy(bytes.data() + 16, &length, 8);
  bytes += frame.payload;
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::send(socket.fd(), bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    done += static_cast<std::size_t>(n);
  }
  return true;
}

bool receive_frame(const Socket& socket, Frame& frame) {
  return receive(socket, frame, kLongestFrame, std::nullopt);
}

std::vector<Socket> meet(const Meeting& meeting, std::vector<Peer>& peers) {
  const Launch& launch = meeting.launch;
  peers.assign(static_cast<std::size_t>(launch.size), {});
  peers[static_cast<std::size_t>(launch.rank)] = {launch.rank, host_name(), ::getpid()};
  const bool by_file = !meeting.broadcast && launch.address.empty();
  require(!by_file || !launch.file.empty(),
          "{} ranks were started by {} without MPI, and nothing says where they meet: set MASTER_ADDR and MASTER_PORT, "
          "or SFA_RENDEZVOUS to a file that all of them see",
          launch.size, launch.launcher);
  Place place;
  Socket listener;
  if (launch.rank == 0) {
    listener = listen_at(meeting.broadcast ? 0 : launch.port, place.port);
    place.addresses = own_addresses();
    if (meeting.broadcast || by_file) place.cookie = std::random_device{}() | (std::uint64_t{1} << 40);
    if (by_file) write_place(launch.file, text_of(place));
  }
  if (meeting.broadcast) {
    const std::string text = meeting.broadcast(launch.rank == 0 ? text_of(place) : "");
    require(parse(text, place), "internal error: rank 0 said where to meet with '{}'", text);
  } else if (!by_file) {
    place = {0, launch.port, {launch.address}};
  }
  if (launch.rank == 0) {
    std::vector<Socket> all = gather_ranks(listener, place, meeting, peers);
    if (by_file) std::filesystem::remove(launch.file);
    return all;
  }
  const auto deadline = in_seconds(meeting.timeout_s);
  while (Clock::now() < deadline) {
    if (by_file && !parse(read_place(launch.file), place)) place.addresses.clear();
    for (const std::string& address : place.addresses) {
      Socket socket = connect_to(address, place.port);
      if (!socket.open() || !introduce(socket, place, meeting, deadline, peers)) continue;
      std::vector<Socket> one;
      one.push_back(std::move(socket));
      return one;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  fail("rank {} on {} could not reach rank 0 within {} s ({})", launch.rank, host_name(), meeting.timeout_s,
       by_file ? launch.file : fmt::format("{}, port {}", fmt::join(place.addresses, ", "), place.port));
}

}  // namespace sfa::dist
