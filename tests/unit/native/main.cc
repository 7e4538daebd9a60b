// Runs every test, or those whose name contains the first argument. Replaces operator new, so that tests can make
// memory run out at any point.
#include <atomic>
#include <cstddef>
#include <cstring>
#include <new>

#include "check.h"

namespace {

std::atomic<long> allocations_left{-1};

void* allocate(std::size_t bytes, std::size_t alignment) {
  if (allocations_left.load() >= 0 && allocations_left.fetch_sub(1) <= 0) {
    allocations_left.store(0);
    throw std::bad_alloc();
  }
  void* memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment + alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

void embedstore::test::fail_allocations_after(long count) { allocations_left.store(count); }

int main(int argc, char** argv) {
  int ran = 0;
  for (const auto& test : embedstore::test::cases()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    std::printf("%s\n", test.name);
    std::fflush(stdout);
    test.run();
    ++ran;
  }
  std::printf("%d tests passed\n", ran);
  return ran == 0;
}
