// Finds NCCL and its functions.
#include "dist/nccl_library.cuh"

#include <dlfcn.h>

#include <cstdlib>
#include <string>

#include "core/error.h"

namespace sfa::dist {
namespace {

// As the loader finds it, then where NCCL_HOME says.
void* open_library() {
  if (void* library = ::dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL)) return library;
  const std::string reason = ::dlerror();
  const char* home = std::getenv("NCCL_HOME");
  void* library =
      home != nullptr ? ::dlopen((std::string(home) + "/lib/libnccl.so.2").c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
  require(
      library != nullptr,
      "several GPUs talk over NCCL, and libnccl.so.2 can't be loaded ({}); install libnccl2, or set LD_LIBRARY_PATH "
      "or NCCL_HOME to where it lies",
      reason);
  return library;
}

template <class F>
void find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(::dlsym(library, name));
  require(function != nullptr, "libnccl.so.2 has no {}: it is too old", name);
}

NcclLibrary load() {
  void* library = open_library();
  NcclLibrary n;
  find(library, "ncclGetErrorString", n.error_string);
  find(library, "ncclGetVersion", n.version);
  find(library, "ncclGetUniqueId", n.unique_id);
  find(library, "ncclCommInitRank", n.init);
  find(library, "ncclCommDestroy", n.destroy);
  find(library, "ncclCommGetAsyncError", n.async_error);
  find(library, "ncclGroupStart", n.group_start);
  find(library, "ncclGroupEnd", n.group_end);
  find(library, "ncclAllReduce", n.all_reduce);
  find(library, "ncclReduce", n.reduce);
  find(library, "ncclBroadcast", n.broadcast);
  find(library, "ncclSend", n.send);
  find(library, "ncclRecv", n.receive);
  return n;
}

}  // namespace

const NcclLibrary& nccl() {
  static const NcclLibrary library = load();
  return library;
}

}  // namespace sfa::dist
