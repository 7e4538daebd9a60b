// A reader-writer lock under which nobody starves.
//
// std::shared_mutex prefers readers where glibc has it: pulls that overlap each other would hold off a push for as long
// as they go on. Preferring writers starves readers instead. Here writers come through a gate, one at a time, and stay
// in it while they wait for the lock; readers come through the gate as well while any writer waits. So a writer waits
// for those who were there before it and for nobody else, and those who come later wait behind it, readers and writers
// alike. The gate is a plain mutex, which does not hand itself to whoever waits longest: strict order was measured, and
// costs a change of threads with every turn. But all who wait at it have the same chance.
//
// A thread that holds the lock must not ask for it again, not even shared. Locks of several chunks are taken in
// ascending order: a thread in the gate of one waits only for holders of that one, who wait for higher ones if at all.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <shared_mutex>

namespace embedstore {

// What std::unique_lock and std::shared_lock need, without time limits; only readers may try.
class FairMutex {
 public:
  void lock() {
    writers_waiting_.fetch_add(1, std::memory_order_relaxed);
    const std::lock_guard in_gate(gate_);
    mutex_.lock();
    writers_waiting_.fetch_sub(1, std::memory_order_relaxed);
  }
  void unlock() { mutex_.unlock(); }
  void lock_shared() {
    if (writers_waiting_.load(std::memory_order_relaxed) == 0) [[likely]] {
      mutex_.lock_shared();
    } else {
      const std::lock_guard in_gate(gate_);
      mutex_.lock_shared();
    }
  }
  bool try_lock_shared() { return writers_waiting_.load(std::memory_order_relaxed) == 0 && mutex_.try_lock_shared(); }
  void unlock_shared() { mutex_.unlock_shared(); }

 private:
  std::shared_mutex mutex_;
  std::atomic<uint32_t> writers_waiting_{0};
  std::mutex gate_;
};

}  // namespace embedstore
