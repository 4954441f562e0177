// MPI, begun once a process. Only the thread that trains calls it. Left out of builds without MPI.
#pragma once

#include <memory>
#include <string>

#include "dist/communicator.h"

namespace sfa::dist {

class MpiSession {
 public:
  virtual ~MpiSession() = default;
  /// Rank 0's text, on all ranks.
  virtual std::string broadcast(std::string text) = 0;
};

/// Throws Error when MPI sees other ranks than the launcher told.
std::shared_ptr<MpiSession> start_mpi(const Launch& launch);

std::unique_ptr<Communicator> make_mpi_communicator(const Launch& launch, std::unique_ptr<ControlChannel> control,
                                                    std::shared_ptr<MpiSession> session);

}  // namespace sfa::dist
