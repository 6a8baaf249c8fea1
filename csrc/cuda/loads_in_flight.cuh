// The loads in flight of a thread of the forward scan: the values of its streams that it has asked
// for and not used yet.
#pragma once

#include "device.h"
#include "plan.h"

namespace cmimtl::cuda {

// A stage is kSlots values, each of kChannels neighbouring channels at one step. Pairs of channels
// are loaded by asynchronous copies to shared memory, for two stages. No register holds them, and a
// thread reads only what it has copied itself, so it need wait for no other thread. A single
// channel of a half type is too small for such a copy, so single channels are loaded into
// registers, for one stage.
template <class T, int kChannels, int kSlots>
struct LoadsInFlight {
  using Values = Vector<T, kChannels>;
  static constexpr bool kAsync = kChannels > 1;
  static constexpr int kStages = kAsync ? 2 : 1;
  static constexpr int kSlotBytes = kThreads * int(sizeof(Values)), kStageBytes = kSlots * kSlotBytes;
  // What the stages take of shared memory, and the number of groups of copies that they are.
  static constexpr int kBytes = kAsync ? kStages * kStageBytes : 0;
  static constexpr int kCommits = kAsync ? kStages : 0;

  int stage;  // the offset in shared memory of the stage that is used next
  Packed<Values> values[kAsync ? 1 : kSlots];

  __device__ unsigned char* place(int slot) const {
    return shared_memory() + stage + slot * kSlotBytes + threadIdx.x * sizeof(Values);
  }
  __device__ void fetch(int slot, const T* from, bool valid) {
    if constexpr (kAsync) {
      copy_async<sizeof(Values)>(place(slot), from, valid);
    } else {
      values[slot] = valid ? load_vector<Packed<Values>>(from) : Packed<Values>{};
    }
  }
  // Ends the fetches of a stage. It is called once after all of them.
  __device__ void commit() {
    if constexpr (kAsync) copies_commit();
  }
  // One of these is called before the first use of a stage: wait() where the loads of the stage
  // after it have been started, wait_for_all() where they may not have been.
  __device__ void wait() const {
    if constexpr (kAsync) copies_wait<kStages - 1>();
  }
  __device__ void wait_for_all() const {
    if constexpr (kAsync) copies_wait<0>();
  }
  __device__ void get(int slot, float (&x)[kChannels]) const {
    if constexpr (kAsync) {
      to_floats<T>(load_vector<Packed<Values>>(place(slot)), x);
    } else {
      to_floats<T>(values[slot], x);
    }
  }
  // Turns to the other one of the two stages, which begin at the offset `ring`.
  __device__ void turn(int ring) {
    if constexpr (kAsync) stage = 2 * ring + kStageBytes - stage;
  }
};

}  // namespace cmimtl::cuda
