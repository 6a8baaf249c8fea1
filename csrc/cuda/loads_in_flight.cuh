// What a thread of the forward scan loads of its streams, ahead of its use.
#pragma once

#include "device.h"
#include "plan.h"

namespace cmimtl::cuda {

// kSlots values, each of kChannels neighbouring channels at one step, are a stage. Pairs of channels are on their way by
// asynchronous copies, for two stages, to shared memory of which a thread reads its own part alone: waiting for the copies
// is enough, and no register holds them. A single channel of a half type is too small for such a copy: single channels are
// on their way in registers, for one stage.
template <class T, int kChannels, int kSlots>
struct Ahead {
  using Values = Vector<T, kChannels>;
  static constexpr bool kAsync = kChannels > 1;
  static constexpr int kStages = kAsync ? 2 : 1;
  static constexpr int kSlotBytes = kThreads * int(sizeof(Values)), kStageBytes = kSlots * kSlotBytes;
  static constexpr int kBytes = kAsync ? kStages * kStageBytes : 0;  // of shared memory

  static constexpr int kCommits = kAsync ? kStages : 0;  // groups of copies of these stages

  int stage;  // where the stage that is used next begins in shared memory
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
  // After every fetch of a stage, which is used after those on their way.
  __device__ void commit() {
    if constexpr (kAsync) copies_commit();
  }
  // Before the first use of a stage; wait() where the stage after it is on its way too.
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
  // To the other stage of those that begin at `ring`.
  __device__ void turn(int ring) {
    if constexpr (kAsync) stage = 2 * ring + kStageBytes - stage;
  }
};

}  // namespace cmimtl::cuda
