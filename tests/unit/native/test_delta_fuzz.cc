#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "check.h"
#include "crafted.h"

using namespace embedstore;
using namespace embedstore::test;

namespace {

constexpr uint64_t kHostile[] = {0,
                                 1,
                                 2,
                                 63,
                                 64,
                                 255,
                                 1024,
                                 0x7FFFFFFF,
                                 0x80000000,
                                 0xFFFFFFFF,
                                 uint64_t{1} << 56,
                                 (uint64_t{1} << 61) - 1,
                                 ~uint64_t{0} >> 1,
                                 ~uint64_t{0}};

template <class T>
void overwrite(Bytes& bytes, size_t at, Random& random) {
  if (at + sizeof(T) > bytes.size()) return;
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  switch (random.below(4)) {
    case 0:
      value = static_cast<T>(kHostile[random.below(std::size(kHostile))]);
      break;
    case 1:
      value = static_cast<T>(value + 1 - random.below(3));
      break;
    case 2:
      value = static_cast<T>(random.next());
      break;
    default:
      value = static_cast<T>(value ^ T{1} << random.below(8 * sizeof(T)));
      break;
  }
  std::memcpy(bytes.data() + at, &value, sizeof(T));
}

void splice(Bytes& bytes, const Bytes& other, Random& random) {
  const size_t length = 1 + random.below(std::min(bytes.size(), other.size()) / 2);
  std::copy_n(other.begin() + static_cast<ptrdiff_t>(random.below(other.size() - length)), length,
              bytes.begin() + static_cast<ptrdiff_t>(random.below(bytes.size() - length)));
}

// One number comes twice: in the columns of ids, an id.
void repeat(Bytes& bytes, Random& random) {
  const size_t words = std::min<size_t>(bytes.size() / 8, 70);
  const size_t from = 8 * random.below(words);
  const size_t to = 8 * random.below(words);
  std::memmove(bytes.data() + to, bytes.data() + from, 8);
}

void shift(Bytes& bytes, Random& random) {
  const auto at = bytes.begin() + static_cast<ptrdiff_t>(random.below(bytes.size()));
  const size_t length = 1 + random.below(24);
  if (random.below(2) == 0) {
    bytes.insert(at, length, static_cast<uint8_t>(random.next()));
  } else {
    bytes.erase(at, at + static_cast<ptrdiff_t>(std::min<size_t>(length, static_cast<size_t>(bytes.end() - at))));
  }
  const uint64_t total = bytes.size();
  if (bytes.size() >= DeltaHeader::kBytes && random.below(2) == 0) std::memcpy(bytes.data() + 128, &total, 8);
}

void mutate(Bytes& bytes, const std::vector<Bytes>& others, Random& random) {
  const size_t edits = 1 + random.below(4);
  for (size_t e = 0; e < edits && bytes.size() > 200; ++e) {
    const size_t field = 4 * random.below(DeltaHeader::kBytes / 4);
    const size_t anywhere = 4 * random.below(bytes.size() / 4);
    switch (random.below(9)) {
      case 0:
        overwrite<uint32_t>(bytes, field, random);
        break;
      case 1:
        overwrite<uint64_t>(bytes, field, random);
        break;
      case 2:
        overwrite<uint8_t>(bytes, random.below(bytes.size()), random);
        break;
      case 3:
        overwrite<uint32_t>(bytes, anywhere, random);
        break;
      case 4:
        overwrite<uint64_t>(bytes, anywhere, random);
        break;
      case 5:
        splice(bytes, bytes, random);
        break;
      case 6:
        splice(bytes, others[random.below(others.size())], random);
        break;
      case 7:
        repeat(bytes, random);
        break;
      default:
        shift(bytes, random);
        break;
    }
  }
}

// Whatever the table took in, it must be sound: every row found, everything sent on and taken again.
void check_sound(Table& table) {
  size_t rows = 0;
  for (uint32_t chunk = 0; chunk < kChunks; ++chunk) {
    ScannedChunk scanned;
    CHECK(table.scan(chunk, scanned).ok());
    std::vector<uint8_t> found(scanned.ids.size());
    CHECK(table.peek(scanned.ids.data(), scanned.ids.size(), {.found = found.data()}).ok());
    CHECK(std::count(found.begin(), found.end(), 1) == static_cast<ptrdiff_t>(found.size()));
    rows += found.size();
    std::sort(scanned.ids.begin(), scanned.ids.end());
    CHECK(std::adjacent_find(scanned.ids.begin(), scanned.ids.end()) == scanned.ids.end());
    Table copy(table.config(), {11, 12});
    const Bytes whole = delta(table, chunk);
    CHECK(take(copy, whole).ok());
    CHECK(same_contents(delta(copy, chunk), whole));
  }
  CHECK(rows == table.size());
}

}  // namespace

TEST(delta_fuzz_hostile_bytes_with_a_right_checksum_are_refused_or_harmless) {
  constexpr uint64_t kSeed = 20261123;
  constexpr int kIterations = 40'000;
  std::printf("  seed %" PRIu64 ", %d mutations\n", kSeed, kIterations);
  Random random{kSeed};
  Sketch sketch(kSketchBytes);
  meet(sketch, random, 60, 1);
  const Bytes base = Crafted{.ids = ids_of_chunk(0, 30), .sketch = &sketch}.encode();
  std::vector<Bytes> sound;
  meet(sketch, random, 90, 2);
  const std::vector<uint64_t> ids = ids_of_chunk(0, 40, 20);
  const std::vector<Tombstone> removed{{ids_of_chunk(0, 1)[0], 2, Reason::kErased},
                                       {ids_of_chunk(0, 2)[1], 3, Reason::kExpired}};
  sound.push_back(Crafted{.from = 1, .to = 3, .ids = ids, .removed = removed, .sketch = &sketch}.encode());
  sound.push_back(Crafted{.to = 3, .ids = ids, .sketch = &sketch}.encode());
  sound.push_back(Crafted{.to = 9, .incarnation = 600, .ids = ids}.encode());
  sound.push_back(Crafted{.from = 1, .to = 4, .removed = removed}.encode());

  Table untouched(config_of(), {1, 2});
  CHECK(take(untouched, base).ok());
  const std::string before = digest(untouched);
  int taken = 0;
  for (int i = 0; i < kIterations; ++i) {
    Bytes bytes = sound[random.below(sound.size())];
    mutate(bytes, sound, random);
    seal(bytes);
    Table target(config_of(), {1, 2});
    CHECK(take(target, base).ok());
    const Status status = take(target, bytes);
    if (status.ok()) {
      check_sound(target);
      ++taken;
    } else {
      CHECK(status.code == Code::kCorruptDelta || status.code == Code::kDeltaGap || status.code == Code::kWrongShard);
      CHECK(!status.problem.empty());
      if (i % 8 == 0) CHECK(digest(target) == before);
    }
  }
  CHECK(taken > kIterations / 100 && taken < kIterations / 2);
}
