#include <algorithm>
#include <cstring>

#include "nccl_on_host.hpp"

namespace cudasim::nccl {

namespace {

constexpr int kTag = 1;
constexpr std::size_t kPieceBytes = std::size_t{1} << 30;  // MPI counts are ints

struct Piece {
  Transfer transfer;
  int bytes;
};

std::string describe(const Piece& piece) {
  return (piece.transfer.kind == Transfer::send ? "a send of " : "a receive of ") +
         std::to_string(piece.bytes) + " bytes " +
         (piece.transfer.kind == Transfer::send ? "to rank " : "from rank ") +
         std::to_string(piece.transfer.peer);
}

std::string who(const Link& link) {
  return "rank " + std::to_string(link.rank) + " of an NCCL group of " + std::to_string(link.size);
}

// A rank's own sends and receives, in order.
std::string copy_own(const Link& link, const std::vector<Transfer>& transfers) {
  std::vector<Transfer> sends, receives;
  for (const Transfer& transfer : transfers)
    if (transfer.peer == link.rank) (transfer.kind == Transfer::send ? sends : receives).push_back(transfer);
  if (sends.size() != receives.size())
    return who(link) + ": " + std::to_string(sends.size()) + " sends to itself, " +
           std::to_string(receives.size()) + " receives";
  for (std::size_t i = 0; i < sends.size(); ++i) {
    if (sends[i].bytes != receives[i].bytes)
      return who(link) + ": sends itself " + std::to_string(sends[i].bytes) + " bytes, receives " +
             std::to_string(receives[i].bytes);
    std::memmove(receives[i].memory, sends[i].memory, sends[i].bytes);
  }
  return "";
}

}  // namespace

ncclResult_t exchange(Link& link, const std::vector<Transfer>& transfers) {
  // Until the rows land, a receiver's memory is neither what it was nor what it will be.
  for (const Transfer& transfer : transfers)
    if (transfer.kind == Transfer::receive) std::memset(transfer.memory, 0xff, transfer.bytes);
  if (const std::string wrong = copy_own(link, transfers); !wrong.empty())
    return link.state = report(ncclInvalidUsage, wrong);

  std::vector<Piece> pieces;
  for (const Transfer& transfer : transfers)
    for (std::size_t at = 0; transfer.peer != link.rank && at < transfer.bytes; at += kPieceBytes)
      pieces.push_back(
          {{transfer.kind, static_cast<char*>(transfer.memory) + at, transfer.bytes, transfer.peer},
           static_cast<int>(std::min(kPieceBytes, transfer.bytes - at))});
  std::vector<MPI_Request> requests(pieces.size(), MPI_REQUEST_NULL);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const auto& [transfer, bytes] = pieces[i];
    if (transfer.kind == Transfer::receive)
      MPI_Irecv(transfer.memory, bytes, MPI_BYTE, transfer.peer, kTag, link.mpi, &requests[i]);
    else  // synchronous: it ends only when a receive has taken it
      MPI_Issend(transfer.memory, bytes, MPI_BYTE, transfer.peer, kTag, link.mpi, &requests[i]);
  }
  std::vector<MPI_Status> statuses;
  std::string wrong;
  if (!wait(requests, statuses)) {
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      if (requests[i] == MPI_REQUEST_NULL) continue;
      wrong += (wrong.empty() ? "" : ", ") + describe(pieces[i]);
      if (pieces[i].transfer.kind == Transfer::receive) MPI_Cancel(&requests[i]);
      MPI_Request_free(&requests[i]);
    }
    wrong = who(link) + " waited " + std::to_string(limit_s()) + " s in vain for the other side of " + wrong +
            ": on devices this hangs";
  }
  for (std::size_t i = 0; wrong.empty() && i < pieces.size(); ++i) {
    if (pieces[i].transfer.kind == Transfer::send) continue;
    int bytes = 0;
    MPI_Get_count(&statuses[i], MPI_BYTE, &bytes);
    if (statuses[i].MPI_ERROR != MPI_SUCCESS || bytes != pieces[i].bytes)
      wrong =
          who(link) + ": " + describe(pieces[i]) + " met a send of " +
          (bytes > pieces[i].bytes || statuses[i].MPI_ERROR != MPI_SUCCESS ? "more" : std::to_string(bytes));
  }
  if (!wrong.empty()) link.state = report(ncclInternalError, wrong);
  return link.state;
}

// The ranks report to the root, which answers with the list of them.
ncclResult_t join(Link& link, const Meeting& meeting, int device) {
  if (link.size == 1) return ncclSuccess;
  const int tag = 30000 + meeting.number % 2000;
  const auto size = static_cast<std::size_t>(link.size);
  struct Report {
    int rank, world_rank, device;
  };
  int world_rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
  const Report mine{link.rank, world_rank, device};
  std::vector<int> members(size + 2, -1);  // world ranks, and two NCCL ranks that use one device
  std::vector<MPI_Request> requests;
  std::vector<MPI_Status> statuses;
  if (world_rank == meeting.root) {
    std::vector<Report> reports(size, mine);
    requests.resize(size - 1);
    for (std::size_t i = 1; i < size; ++i)
      MPI_Irecv(&reports[i], sizeof(Report), MPI_BYTE, MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, &requests[i - 1]);
    if (!wait(requests, statuses))
      return report(ncclSystemError,
                    "ncclCommInitRank: not all of " + std::to_string(link.size) + " ranks came");
    for (const Report& a : reports) {
      members[static_cast<std::size_t>(a.rank)] = a.world_rank;
      for (const Report& b : reports)
        if (a.rank < b.rank && a.device == b.device) members[size] = a.rank, members[size + 1] = b.rank;
    }
    requests.clear();
    for (std::size_t i = 1; i < size; ++i)
      MPI_Isend(members.data(), static_cast<int>(size + 2), MPI_INT, reports[i].world_rank, tag,
                MPI_COMM_WORLD, &requests.emplace_back());
  } else {
    requests.resize(2);
    MPI_Isend(&mine, sizeof mine, MPI_BYTE, meeting.root, tag, MPI_COMM_WORLD, &requests[0]);
    MPI_Irecv(members.data(), static_cast<int>(size + 2), MPI_INT, meeting.root, tag, MPI_COMM_WORLD,
              &requests[1]);
  }
  if (!wait(requests, statuses)) return report(ncclSystemError, "ncclCommInitRank: no answer from the root");
  if (members[size] >= 0)
    return report(ncclInvalidUsage, "Duplicate GPU detected : rank " + std::to_string(members[size]) +
                                        " and rank " + std::to_string(members[size + 1]) +
                                        " both on the same device");
  MPI_Group world = MPI_GROUP_NULL, group = MPI_GROUP_NULL;
  MPI_Comm_group(MPI_COMM_WORLD, &world);
  MPI_Group_incl(world, link.size, members.data(), &group);
  MPI_Comm_create_group(MPI_COMM_WORLD, group, tag, &link.mpi);
  MPI_Comm_set_errhandler(link.mpi, MPI_ERRORS_RETURN);
  MPI_Group_free(&group);
  MPI_Group_free(&world);
  return ncclSuccess;
}

}  // namespace cudasim::nccl
