// Every id has a row of its own, whatever came and went before: ten million of them.
#include <cstdint>
#include <vector>

#include "check.h"
#include "native/table.h"

using namespace embedstore;

namespace {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr size_t kIds = 300'000;
#else
constexpr size_t kIds = 10'000'000;
#endif
constexpr size_t kBatch = 1 << 16;

// Ids as counters make them, and spread over all of 64 bits with both ends of the range.
std::vector<uint64_t> every_id() {
  std::vector<uint64_t> ids(kIds);
  for (size_t i = 0; i < kIds / 2; ++i) ids[i] = i;
  for (size_t i = kIds / 2; i < kIds; ++i) ids[i] = mix64((uint64_t{7} << 40) + i);
  ids.back() = ~uint64_t{0};
  return ids;
}

// A whole number that float32 holds exactly, never 0.
float value_of(uint64_t id, uint64_t round) { return static_cast<float>((mix64(id + round) >> 41) + 1); }

template <class Visit>
void in_batches(const std::vector<uint64_t>& ids, Visit visit) {
  for (size_t at = 0; at < ids.size(); at += kBatch) visit(ids.data() + at, std::min(kBatch, ids.size() - at));
}

void write(Table& table, const std::vector<uint64_t>& ids, uint64_t round) {
  std::vector<float> gradients(kBatch);
  in_batches(ids, [&](const uint64_t* batch, size_t count) {
    for (size_t i = 0; i < count; ++i) gradients[i] = -value_of(batch[i], round);
    PushRequest request;
    request.ids = batch;
    request.gradients = gradients.data();
    request.count = count;
    CHECK(table.push(request, {}).ok());
  });
}

// `round` 0: they are absent.
void expect(const Table& table, const std::vector<uint64_t>& ids, uint64_t round) {
  std::vector<float> rows(kBatch);
  std::vector<uint8_t> found(kBatch);
  PullTarget target;
  target.rows = rows.data();
  target.found = found.data();
  in_batches(ids, [&](const uint64_t* batch, size_t count) {
    CHECK(table.pull(batch, count, target).ok());
    for (size_t i = 0; i < count; ++i) {
      CHECK(found[i] == (round != 0));
      CHECK(rows[i] == (round == 0 ? 0.0f : value_of(batch[i], round)));
    }
  });
}

}  // namespace

TEST(every_one_of_ten_million_ids_has_its_own_row) {
  TableConfig config;
  config.num_chunks = config.chunk_end = 64;
  config.optimizer.kind = Optimizer::Kind::kSgd;
  config.lr = 1;
  Table table(config, std::vector<uint64_t>(64, 1));
  const std::vector<uint64_t> all = every_id();
  std::vector<uint64_t> kept;
  std::vector<uint64_t> gone;
  for (size_t i = 0; i < all.size(); ++i) (i % 3 == 0 ? gone : kept).push_back(all[i]);

  write(table, all, 1);
  CHECK(table.size() == all.size());
  CHECK(table.memory_bytes() < kIds * 48 + (size_t{64} << 20));
  expect(table, all, 1);

  in_batches(gone, [&](const uint64_t* batch, size_t count) {
    uint64_t removed = 0;
    CHECK(table.erase(batch, count, Reason::kErased, {}, removed).ok() && removed == count);
  });
  CHECK(table.size() == kept.size());
  SweepResult swept;
  do {
    CHECK(table.sweep(1 << 20, false, swept).ok());
  } while (!swept.complete);
  expect(table, kept, 1);
  expect(table, gone, 0);

  write(table, gone, 2);
  CHECK(table.size() == all.size());
  expect(table, kept, 1);
  expect(table, gone, 2);
}
