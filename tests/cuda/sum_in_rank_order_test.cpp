// The kernel behind device sums over ranks, with the other ranks' parts made up: the bits of a loop on the
// host.
#include "comm/cuda/sum_in_rank_order.hpp"

#include <vector>

#include "cuda/device_support.hpp"

namespace moecollab {
namespace {

class SumInRankOrder : public test::OnDevice {};

template <class T>
void expect_host_bits(std::int64_t n, int rank, int num_ranks) {
  const DType dtype = DTypeOf<T>::value;
  const Tensor all(dtype, {num_ranks, n}), others(dtype, {num_ranks - 1, n});
  T* values = all.view().as<T>();
  for (std::int64_t i = 0; i < num_ranks * n; ++i)  // of many magnitudes: another order gives other bits
    values[i] = static_cast<T>((i * 2654435761 % 4001 - 2000) * (1 << (i * 7 % 13)) * 1.7);
  std::vector<T> expected(values, values + n);
  for (int p = 1; p < num_ranks; ++p)
    for (std::int64_t i = 0; i < n; ++i) expected[static_cast<std::size_t>(i)] += values[p * n + i];
  if (n > 0) {
    copy_convert(all.view().rows(0, rank), others.view().rows(0, rank));
    copy_convert(all.view().rows(rank + 1, num_ranks), others.view().rows(rank, num_ranks - 1));
  }
  const Tensor mine = test::to_device(all.view().rows(rank, rank + 1)),
               parts = test::to_device(others.view());
  Stream& stream = test::device_stream();
  cuda::sum_in_rank_order(stream, mine.view().as<T>(), parts.view().as<T>(), rank, num_ranks, n);
  stream.synchronize();
  const Tensor sums = test::to_host(mine.view());
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < n; ++i)
    wrong += sums.view().as<T>()[i] != expected[static_cast<std::size_t>(i)];
  EXPECT_EQ(wrong, 0) << "of " << n << " " << to_string(dtype) << ", rank " << rank << " of " << num_ranks;
}

TEST_F(SumInRankOrder, HasTheBitsOfTheHost) {
  for (const std::int64_t n : {0, 1, 255, 1024, 1025, 4099})
    for (const int num_ranks : {2, 3, 8})
      for (const int rank : {0, 1, num_ranks - 1}) {
        expect_host_bits<float>(n, rank, num_ranks);
        expect_host_bits<double>(n, rank, num_ranks);
        expect_host_bits<std::int64_t>(n, rank, num_ranks);
      }
}

}  // namespace
}  // namespace moecollab
