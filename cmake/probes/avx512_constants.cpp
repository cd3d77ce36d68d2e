// Exits 1 when the compiler stores a constant vector that ends in zeros as a broadcast of its first element
// (g++ 12 with AVX-512).
#include <cstdint>
#include <vector>

__attribute__((noinline, noclone)) bool whole(const std::vector<std::int64_t>& v) {
  return v[1] == 5 && v[2] == 0 && v[3] == 0;
}

int main() {
  const std::vector<std::int64_t> v{5, 5, 0, 0};
  return whole(v) ? 0 : 1;
}
