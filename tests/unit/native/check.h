// A test framework in a page: TEST(name) { CHECK(condition); }. A failed check prints where and ends the program.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace embedstore::test {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Register {
  Register(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

[[noreturn]] inline void fail(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: CHECK(%s) failed\n", file, line, condition);
  std::exit(1);
}

// splitmix64: numbers that are the same in every run.
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t bound) { return next() % bound; }
};

// Lets `count` more allocations through operator new succeed and the next ones fail; negative: all succeed.
void fail_allocations_after(long count);

}  // namespace embedstore::test

#define TEST(name)                                                             \
  static void test_##name();                                                   \
  static const embedstore::test::Register register_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition) ((condition) ? static_cast<void>(0) : embedstore::test::fail(__FILE__, __LINE__, #condition))
