// What a kernel sees when the engine runs it on a CPU: CUDA's names for a thread's place, barriers, warp collectives,
// vector types and a few intrinsics. csrc/cuda/device.h includes it where no nvcc compiles the kernels. Tests only.
//
// Glossary
//   fiber        a stack of its own that is entered and left at will; each CUDA thread of a block is one
//   collective   an operation that several threads do together: __syncthreads, __syncwarp, shuffles, votes
//   schedule     the order in which blocks, and threads between two collectives, run; drawn from a seed
//   group        a thread's asynchronous copies between two commits
//
// How faults are seen
//   - engine.cpp checks each collective: who takes part, with which mask, in which order. A fault is a simt::Error that
//     names the source line, the block and the thread.
//   - Shared memory is a heap block of the exact size, filled with NaN; so is the target of a copy under way.
//   - Under the thread sanitizer two threads are ordered by __syncthreads and __syncwarp alone, never by the schedule, and
//     blocks by fences alone: a missing barrier is a data race, whether or not it changed the result.
//   - Under the address and undefined-behaviour sanitizers, one element too far and a misaligned vector are errors.
//   - What a thread with a __threadfence before its atomicAdd knows is known to one whose atomicAdd on the same number
//     comes later and is followed by a __threadfence. A collective ends what a fence covers, which is stricter than CUDA;
//     what a thread writes itself between its fence and its atomicAdd is taken for fenced, which is not seen as a fault.
// Not simulated: thread block clusters, TMA, tensor cores, atomics other than atomicAdd on unsigned.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>

#include "numbers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Of the running thread; the engine changes what they refer to.
extern const uint3& threadIdx;
extern const uint3& blockIdx;
extern const dim3& blockDim;
extern const dim3& gridDim;
constexpr int warpSize = 32;

namespace simt {

using Where = std::source_location;

// A fault of the kernel or of its launch.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The schedule of the launches that follow; 0 runs blocks and threads in order.
void set_seed(unsigned seed);

// What the plans of launches take the machine to be full with; 0: what they would on a GPU.
inline int64_t warps_to_fill = 0;

// Launches and blocks so far, this one included, for tests that count what each of them does.
inline unsigned launches_begun = 0, blocks_begun = 0;

// Runs `body` once for each thread of each block. Throws Error.
void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

unsigned char* shared_memory();
[[noreturn]] void fail(const char* message, Where where);
void barrier(Where where);

enum class Collective { kSyncWarp, kShuffle, kShuffleUp, kShuffleDown, kShuffleXor, kBallot };
// What one lane brings to a collective of its warp; the lanes of the mask must agree on kind, mask and width.
struct Request {
  Collective kind;
  unsigned mask;
  uint64_t value = 0;
  int argument = 0;  // source lane, delta or lane mask
  int width = warpSize;
};
// The lane's share of the result; NaN where a shuffle reads a lane that is outside the mask.
uint64_t warp_collective(Request request, Where where);

struct Copy {
  void* shared;
  const void* global;  // null: zeros are written
  int bytes;
};
void queue_copy(Copy copy, Where where);
void copies_commit();
void fence();
unsigned atomic_add(unsigned* p, unsigned value);
// The thread's next copy that waiting for all but `groups` groups must finish; false where there is none.
bool take_copy(int groups, Copy& copy);

inline void check_alignment(const char* what, const void* p, size_t alignment, Where where) {
  if (reinterpret_cast<uintptr_t>(p) % alignment == 0) return;
  fail((std::string(what) + ": address is not a multiple of " + std::to_string(alignment)).c_str(), where);
}

// These touch the kernel's memory, so they are compiled with the kernel's sanitizer, byte by byte: the thread sanitizer
// sees no race in a call of memset or memcpy.
inline void set_bytes(void* target, unsigned char value, int bytes) {
  for (int i = 0; i < bytes; ++i) static_cast<unsigned char*>(target)[i] = value;
}
inline void copy_async(void* shared, const void* global, int bytes, bool valid, Where where) {
  check_alignment("copy_async: shared", shared, bytes, where);
  if (valid) check_alignment("copy_async: global", global, bytes, where);
  queue_copy({shared, valid ? global : nullptr, bytes}, where);
  set_bytes(shared, 0xff, bytes);  // whoever reads before the wait reads NaN
}
inline void copies_wait(int groups) {
  for (Copy copy; take_copy(groups, copy);) {
    if (!copy.global) set_bytes(copy.shared, 0, copy.bytes);
    for (int i = 0; copy.global && i < copy.bytes; ++i) {
      static_cast<unsigned char*>(copy.shared)[i] = static_cast<const unsigned char*>(copy.global)[i];
    }
  }
}

template <class T>
T shuffle(Collective kind, unsigned mask, T value, int argument, int width, Where where) {
  return from_bits<T>(warp_collective({kind, mask, to_bits(value), argument, width}, where));
}

}  // namespace simt

inline void __syncthreads(simt::Where where = simt::Where::current()) { simt::barrier(where); }
inline void __syncwarp(unsigned mask = 0xffffffffu, simt::Where where = simt::Where::current()) {
  simt::warp_collective({simt::Collective::kSyncWarp, mask}, where);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize, simt::Where where = simt::Where::current()) {
  return simt::shuffle(simt::Collective::kShuffle, mask, value, lane, width, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 simt::Where where = simt::Where::current()) {
  return simt::shuffle(simt::Collective::kShuffleUp, mask, value, int(delta), width, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   simt::Where where = simt::Where::current()) {
  return simt::shuffle(simt::Collective::kShuffleDown, mask, value, int(delta), width, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  simt::Where where = simt::Where::current()) {
  return simt::shuffle(simt::Collective::kShuffleXor, mask, value, lane_mask, width, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Where where = simt::Where::current()) {
  return unsigned(simt::warp_collective({simt::Collective::kBallot, mask, predicate != 0}, where));
}
inline int __any_sync(unsigned mask, int predicate, simt::Where where = simt::Where::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, simt::Where where = simt::Where::current()) {
  return __ballot_sync(mask, predicate, where) == mask;
}

inline void __threadfence() { simt::fence(); }
inline unsigned atomicAdd(unsigned* p, unsigned value) { return simt::atomic_add(p, value); }
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline unsigned __float_as_uint(float x) { return simt::from_bits<unsigned>(simt::to_bits(x)); }
inline float __uint_as_float(unsigned x) { return simt::from_bits<float>(x); }
inline int __float_as_int(float x) { return simt::from_bits<int>(simt::to_bits(x)); }
inline float __int_as_float(int x) { return simt::from_bits<float>(unsigned(x)); }
using std::max;
using std::min;
