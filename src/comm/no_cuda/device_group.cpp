// A build without CUDA: no device tensor exists, so none arrives here.
#include "comm/device_group.hpp"

#include "moecollab/core/error.hpp"

namespace moecollab {

namespace {
[[noreturn]] void refuse() { throw InternalError("device rows in a build without CUDA"); }
}  // namespace

std::vector<DeviceId> visible_devices() { return {}; }

DeviceGroup::DeviceGroup(MPI_Comm, int rank, int size) : rank_(rank), size_(size) { refuse(); }
DeviceGroup::~DeviceGroup() = default;
void DeviceGroup::all_to_all_rows(Stream&, const void*, void*, std::int64_t, const RowExchange&) { refuse(); }
void DeviceGroup::all_gather(Stream&, const void*, void*, std::int64_t) { refuse(); }
void DeviceGroup::broadcast(Stream&, void*, std::int64_t, int) { refuse(); }
void DeviceGroup::all_reduce_sum(Stream&, TensorView) { refuse(); }

}  // namespace moecollab
