// Which CUDA device belongs to which rank. Launchers differ: mpirun shows every rank all devices of the host,
// Slurm may show each rank one of its own, under the same index. So ranks compare what they see by the
// devices' unique ids.
#include <mpi.h>

#include <algorithm>
#include <set>

#include "comm/communicator_impl.hpp"
#include "comm/mpi_check.hpp"
#include "moecollab/core/device.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab {

namespace {

using Seen = std::vector<std::vector<DeviceId>>;  // by rank on this host

Seen gather_visible(MPI_Comm host, int size) {
  const std::vector<DeviceId> mine = visible_devices();
  const int num = static_cast<int>(mine.size());
  std::vector<int> nums(static_cast<std::size_t>(size));
  check_mpi(MPI_Allgather(&num, 1, MPI_INT, nums.data(), 1, MPI_INT, host), "MPI_Allgather");
  const auto most = static_cast<std::size_t>(*std::max_element(nums.begin(), nums.end()));
  std::vector<DeviceId> padded = mine, all(most * nums.size());
  padded.resize(most);
  const int bytes = static_cast<int>(most * sizeof(DeviceId));
  check_mpi(MPI_Allgather(padded.data(), bytes, MPI_BYTE, all.data(), bytes, MPI_BYTE, host),
            "MPI_Allgather");
  Seen seen(nums.size());
  for (std::size_t r = 0; r < nums.size(); ++r) {
    const auto first = all.begin() + static_cast<std::ptrdiff_t>(r * most);
    seen[r].assign(first, first + nums[r]);
  }
  return seen;
}

// In rank order each takes the first device it sees that is still free. -1: none was left for `rank`.
int choose(const Seen& seen, std::size_t rank) {
  std::set<DeviceId> taken;
  for (std::size_t r = 0; r <= rank; ++r) {
    const auto free =
        std::find_if(seen[r].begin(), seen[r].end(), [&](const DeviceId& id) { return !taken.contains(id); });
    if (r == rank) return free == seen[r].end() ? -1 : static_cast<int>(free - seen[r].begin());
    if (free != seen[r].end()) taken.insert(*free);
  }
  return -1;
}

std::string too_few(const Seen& seen) {
  std::set<DeviceId> devices;
  for (const auto& list : seen) devices.insert(list.begin(), list.end());
  char name[MPI_MAX_PROCESSOR_NAME] = "";
  int length = 0;
  MPI_Get_processor_name(name, &length);
  const std::string ranks = std::to_string(seen.size()), num = std::to_string(devices.size());
  return "--device cuda: each rank needs a device of its own, but the " + ranks + " ranks on host " +
         std::string(name, static_cast<std::size_t>(length)) + " see " + num +
         " in all: start at most that many ranks per host (mpirun --map-by ppr:" + num +
         ":node, srun --ntasks-per-node=" + num +
         "), let the launcher show them more (--gpus-per-node), or use "
         "--device cpu";
}

}  // namespace

int Communicator::use_local_cuda_device() const {
  if (impl_->comm == MPI_COMM_NULL) {
    use_cuda_device(0);
    return 0;
  }
  MPI_Comm host = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(impl_->comm, MPI_COMM_TYPE_SHARED, impl_->rank, MPI_INFO_NULL, &host),
            "MPI_Comm_split_type");
  int host_rank = 0, host_size = 1;
  check_mpi(MPI_Comm_rank(host, &host_rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(host, &host_size), "MPI_Comm_size");
  const Seen seen = gather_visible(host, host_size);
  check_mpi(MPI_Comm_free(&host), "MPI_Comm_free");

  const int device = choose(seen, static_cast<std::size_t>(host_rank));
  std::string problem;
  try {
    const bool shared = device < 0 && !seen[static_cast<std::size_t>(host_rank)].empty();
    if (shared) throw UsageError(too_few(seen));
    use_cuda_device(std::max(device, 0));  // says why, when there is none at all
  } catch (const Error& error) {           // on every rank alike, also when only one device is busy or broken
    problem = error.what();
  }
  const int mine = problem.empty() ? size() : rank();
  int first = size();
  check_mpi(MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, impl_->comm), "MPI_Allreduce");
  if (first < size()) throw UsageError(broadcast(problem, first));
  return device;
}

}  // namespace moecollab
