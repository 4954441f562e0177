// NCCL, loaded when the first job of several GPUs begins: programs run where it is not installed. Left out of builds
// without CUDA or without nccl.h.
#pragma once

#include <memory>

#include "dist/communicator.h"

namespace sfa::dist {

class MpiSession;

/// On CUDA's current device. Throws Error with one sentence when libnccl.so.2 can't be loaded. `session` may be null.
std::unique_ptr<Communicator> make_nccl_communicator(const Launch& launch, std::unique_ptr<ControlChannel> control,
                                                     std::shared_ptr<MpiSession> session);

}  // namespace sfa::dist
