// How the ranks of a job find each other: rank 0 listens, the others learn where and connect. Sockets of IPv4, and the
// frames that go over them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dist/launch.h"

namespace sfa::dist {

/// An open socket, closed with the object.
class Socket {
 public:
  explicit Socket(int fd = -1) : fd_(fd) {}
  ~Socket();
  Socket(Socket&& other) noexcept;
  Socket& operator=(Socket&& other) noexcept;
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] bool open() const { return fd_ >= 0; }

 private:
  int fd_;
};

enum class FrameKind : std::uint32_t { hello, entry, all, beat, fault, goodbye };
/// What goes over a connection. Ranks of one job run one build on one kind of machine: plain structs are enough.
struct Frame {
  FrameKind kind = FrameKind::beat;
  std::uint32_t lane = 0;
  std::uint64_t sequence = 0;
  std::string payload;
};
/// False when the connection has ended or the peer has not taken the bytes in time.
bool send_frame(const Socket& socket, const Frame& frame);
bool receive_frame(const Socket& socket, Frame& frame);

/// Who says hello.
struct Peer {
  int rank = 0;
  std::string host;
  int pid = 0;
};

/// What everybody knows before the ranks are connected.
struct Meeting {
  const Launch& launch;
  double timeout_s;
  /// Rank 0's text to all ranks over MPI; empty = the launch's address or file is used.
  std::function<std::string(std::string text)> broadcast;
};

/// Rank 0: the connections of ranks 1, 2, ... in order. Others: the one connection to rank 0. Throws Error, with one
/// sentence, when not all have met within the timeout or no meeting place was given.
std::vector<Socket> meet(const Meeting& meeting, std::vector<Peer>& peers);

std::string host_name();

}  // namespace sfa::dist
