// Turns NCCL result codes into typed errors.
#pragma once

#include <nccl.h>

#include <source_location>
#include <string>

#include "moecollab/core/error.hpp"

namespace moecollab {

// Throws IoError when the transport or another rank failed (running again may help), InternalError otherwise.
inline void check_nccl(ncclResult_t code, const char* call, ncclComm_t comm,
                       std::source_location where = std::source_location::current()) {
  if (code == ncclSuccess) return;
  std::string what = std::string(call) + " failed: " + ncclGetErrorString(code);
  if (const char* detail = ncclGetLastError(comm); detail != nullptr && *detail != '\0')
    what += std::string(" (") + detail + ")";
  if (code == ncclSystemError || code == ncclRemoteError)
    throw IoError(what + ". The network or another rank failed; what was saved is intact: run again", where);
  throw InternalError(what + "; NCCL_DEBUG=WARN says more", where);
}

// Sends and receives between construction and `end` run together. A group that an exception leaves is closed,
// because NCCL counts openings per thread.
class NcclGroup {
 public:
  explicit NcclGroup(ncclComm_t comm) : comm_(comm) { check_nccl(ncclGroupStart(), "ncclGroupStart", comm); }
  ~NcclGroup() {
    if (open_) ncclGroupEnd();
  }
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;
  void end() {
    open_ = false;
    check_nccl(ncclGroupEnd(), "ncclGroupEnd", comm_);
  }

 private:
  ncclComm_t comm_;
  bool open_ = true;
};

}  // namespace moecollab
