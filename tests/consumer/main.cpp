#include <cstdio>

#include "moecollab/comm/communicator.hpp"
#include "moecollab/nn/model_config.hpp"

int main() {
  const moecollab::Communicator ranks = moecollab::Communicator::self();
  moecollab::Stream stream;
  const moecollab::Tensor x(moecollab::DType::f32, {4});
  x.view().as<float>()[3] = 2.5f;
  ranks.all_reduce_sum(stream, x.view());
  const moecollab::nn::ModelConfig config;
  std::printf("%d rank, %s, model width %lld\n", ranks.size(), to_string(x.dtype()),
              static_cast<long long>(config.hidden_size));
  return x.view().as<float>()[3] == 2.5f ? 0 : 1;
}
