// Small kernels, each in a right and a faulty form, that show what the engine sees (test_engine.py).
//
//     engine_cases right SEED    runs the right form of every case
//     engine_cases NAME SEED     runs the faulty form of one
//
// Each line of the output is a failure; the exit status is 0 without one.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "cuda/device.h"

namespace {

using namespace cmimtl::cuda;

constexpr int kThreads = 64;

// Collectives and shared memory. All of these kernels reverse the order of n numbers unless they say otherwise.

template <bool kFaulty>
__global__ void removed_barrier(const float* x, float* out, int n) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = x[threadIdx.x];
  if (!kFaulty) __syncthreads();
  out[threadIdx.x] = shared[n - 1 - threadIdx.x];
}

// Reads two tiles through one buffer: the barrier that lets all read before it is overwritten.
template <bool kFaulty>
__global__ void removed_second_barrier(const float* x, float* out, int n) {
  float* shared = shared_memory<float>();
  const unsigned half = n / 2;
  for (unsigned tile = 0; tile < 2; ++tile) {
    if (tile == 0 || !kFaulty) __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] = x[tile * half + threadIdx.x];
    __syncthreads();
    if (threadIdx.x < half) out[n / 2 - tile * half + threadIdx.x] = shared[half - 1 - threadIdx.x];
  }
}

template <bool kFaulty>
__global__ void divergent_barrier(const float* x, float* out, int n) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = x[threadIdx.x];
  if (kFaulty && threadIdx.x < kThreads / 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = shared[n - 1 - threadIdx.x];
}

template <bool kFaulty>
__global__ void exit_before_barrier(const float* x, float* out, int n) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = x[threadIdx.x];
  if (kFaulty && threadIdx.x == 5) {
    out[threadIdx.x] = x[n - 6];
    return;
  }
  __syncthreads();
  out[threadIdx.x] = shared[n - 1 - threadIdx.x];
}

template <bool kFaulty>
__global__ void removed_warp_barrier(const float* x, float* out, int n) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = x[n - 1 - threadIdx.x];
  if (!kFaulty) __syncwarp();
  shared[n + threadIdx.x] = shared[threadIdx.x ^ 1];
  if (!kFaulty) __syncwarp();
  out[threadIdx.x] = shared[n + (threadIdx.x ^ 1)];
}

// A shuffle orders no memory, though all lanes meet in it.
template <bool kFaulty>
__global__ void shuffle_as_barrier(const float* x, float* out, int n) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = x[n - 1 - threadIdx.x];
  __shfl_xor_sync(kAllLanes, 1, 1);
  if (!kFaulty) __syncwarp();
  shared[n + threadIdx.x] = shared[threadIdx.x ^ 1];
  __syncwarp();
  out[threadIdx.x] = shared[n + (threadIdx.x ^ 1)];
}

template <bool kFaulty>
__global__ void wrong_mask(const float* x, float* out, int n) {
  float value = x[n - 1 - threadIdx.x];
  if (threadIdx.x % warpSize < 16) {  // twice exchanged with the neighbour: as it was
    const unsigned mask = kFaulty ? kAllLanes : 0xffffu;
    for (int i = 0; i < 2; ++i) value = __shfl_xor_sync(mask, value, 1);
  }
  out[threadIdx.x] = value;
}

template <bool kFaulty>
__global__ void not_in_own_mask(const float* x, float* out, int n) {
  out[threadIdx.x] = __shfl_sync(kFaulty ? 0xffffu : kAllLanes, x[n - 1 - threadIdx.x], threadIdx.x % warpSize);
}

template <bool kFaulty>
__global__ void different_collectives(const float* x, float* out, int n) {
  const float value = x[n - 1 - threadIdx.x];
  const int lane = threadIdx.x % warpSize;
  out[threadIdx.x] = kFaulty && lane < 16 ? __shfl_xor_sync(kAllLanes, value, 0) : __shfl_up_sync(kAllLanes, value, 0);
}

template <bool kFaulty>
__global__ void barrier_against_shuffle(const float* x, float* out, int n) {
  float value = x[n - 1 - threadIdx.x];
  if (kFaulty && threadIdx.x == 0) {
    __syncthreads();
  } else {
    value = __shfl_sync(kAllLanes, value, threadIdx.x % warpSize);
  }
  out[threadIdx.x] = value;
}

template <bool kFaulty>
__global__ void unwritten_shared_memory(const float* x, float* out, int n) {
  float* shared = shared_memory<float>();
  if (!kFaulty || threadIdx.x != 7) shared[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[n - 1 - threadIdx.x];
}

// Bounds and alignment

template <bool kFaulty>
__global__ void shared_off_by_one(const float* x, float* out, int n) {
  float* shared = shared_memory<float>();  // of n elements
  shared[threadIdx.x] = x[threadIdx.x];
  if (kFaulty && threadIdx.x == 0) shared[n] = 0;
  __syncthreads();
  out[threadIdx.x] = shared[n - 1 - threadIdx.x];
}

template <bool kFaulty>
__global__ void global_off_by_one(const float* x, float* out, int n) {
  const float value = x[n - 1 - threadIdx.x];
  const float next = x[n - threadIdx.x - (kFaulty ? 0 : 1)];
  out[threadIdx.x] = next > 1e30f ? 0.0f : value;  // no result shows it
}

// Copies x; the faulty one from and to an address that is one float too high for a vector of four.
template <bool kFaulty>
__global__ void misaligned_load_vector(const float* x, float* out, int n) {
  const int i = 4 * threadIdx.x + (kFaulty ? 1 : 0);
  if (i + 4 > n) return;
  const auto vector = load_vector<Vector<float, 4>>(x + n - 4 - 4 * threadIdx.x + (kFaulty ? 1 : 0));
  Vector<float, 4> reversed;
  for (int k = 0; k < 4; ++k) reversed[k] = vector[3 - k];
  store_vector(out + 4 * threadIdx.x, reversed);
}

template <bool kFaulty>
__global__ void misaligned_float4(const float* x, float* out, int n) {
  const int i = 4 * threadIdx.x;
  if (i + 4 > n) return;
  const float4 v = *reinterpret_cast<const float4*>(x + (kFaulty ? 1 : n - 4 - i));
  *reinterpret_cast<float4*>(out + i) = make_float4(v.w, v.z, v.y, v.x);
}

// Asynchronous copies

enum class CopyFault { kNone, kNoWait, kWaitForOneLess, kNoCommit, kNoBarrier, kMisaligned, kOutside };

// Each thread copies four numbers in two groups and reads those of another.
template <CopyFault kFault>
__global__ void copies(const float* x, float* out, int n) {
  float* shared = shared_memory<float>();
  const int i = 4 * threadIdx.x, from = n - 4 - i;
  const bool inside = i < n;
  if (inside) {
    const int off = kFault == CopyFault::kMisaligned ? 1 : kFault == CopyFault::kOutside ? n : 0;
    copy_async<8>(shared + i + off, x + i);
    copies_commit();
    copy_async<8>(shared + i + 2 + off, x + i + 2);
    if (kFault != CopyFault::kNoCommit) copies_commit();
    if (kFault == CopyFault::kWaitForOneLess) copies_wait<1>();
    if (kFault != CopyFault::kNoWait && kFault != CopyFault::kWaitForOneLess) copies_wait<0>();
  }
  if (kFault != CopyFault::kNoBarrier) __syncthreads();
  for (int k = 0; inside && k < 4; ++k) out[i + k] = shared[from + 3 - k];
  if (kFault == CopyFault::kWaitForOneLess) copies_wait<0>();
}

// A target that others still read when the copy begins, though a barrier comes before the wait.
template <bool kFaulty>
__global__ void copy_over_what_is_read(const float* x, float* out, int n) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  const float value = shared[n - 1 - threadIdx.x];
  if (!kFaulty) __syncthreads();
  copy_async<4>(shared + threadIdx.x, x);
  copies_commit();
  __syncthreads();
  copies_wait<0>();
  out[threadIdx.x] = value;
}

// Where `valid` is false the source is not read, and the target becomes 0.
template <bool kFaulty>
__global__ void copy_of_invalid(const float* x, float* out, int n) {
  float* shared = shared_memory<float>();
  copy_async<4>(shared + threadIdx.x, kFaulty ? x : nullptr, kFaulty);
  copies_commit();
  copies_wait<0>();
  out[threadIdx.x] = shared[threadIdx.x] + x[n - 1 - threadIdx.x];
}

// Blocks

template <bool kFaulty>
__global__ void cross_block_race(const float* x, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = x[n - 1 - i];
  __syncthreads();
  if (kFaulty && threadIdx.x == 0) out[0] = x[n - 1];  // the same value: no result shows it
}

// Every block leaves its share; the last one to do so reads those of all.
enum class TicketFault { kNone, kNoFenceBefore, kNoFenceAfter, kNoBarrier };
template <TicketFault kFault>
__global__ void tickets(const float* x, float* out, int n) {
  unsigned* const last = shared_memory<unsigned>();
  static float shares[kThreads];
  static unsigned taken;
  const int first = int(blockIdx.x * blockDim.x), i = first + int(threadIdx.x);
  shares[i] = x[n - 1 - i];
  if (kFault != TicketFault::kNoBarrier) __syncthreads();
  if (threadIdx.x == 0) {
    if (kFault != TicketFault::kNoFenceBefore) __threadfence();
    last[0] = atomicAdd(&taken, 1u) % gridDim.x == gridDim.x - 1;
    if (kFault != TicketFault::kNoFenceAfter) __threadfence();
  }
  __syncthreads();
  if (!last[0]) return;
  for (int k = int(threadIdx.x); k < n; k += int(blockDim.x)) out[k] = shares[k];
}

using Kernel = void (*)(const float*, float*, int);
struct Case {
  Kernel right, faulty;
  dim3 grid = 1, block = kThreads;
  size_t right_shared = 0, faulty_shared = 0;
};
constexpr size_t kFloats = kThreads * sizeof(float);

template <CopyFault kFault>
constexpr Case copy_case() {
  return {copies<CopyFault::kNone>, copies<kFault>, 1, kThreads, kFloats, kFloats};
}

template <TicketFault kFault>
constexpr Case ticket_case() {
  return {tickets<TicketFault::kNone>, tickets<kFault>, 4, kThreads / 4, sizeof(unsigned), sizeof(unsigned)};
}

#define CASE(name, ...)                             \
  {                                                 \
    #name, { name<false>, name<true>, __VA_ARGS__ } \
  }
const std::map<std::string, Case> kCases = {
    CASE(removed_barrier, 1, kThreads, kFloats, kFloats),
    CASE(removed_second_barrier, 1, kThreads, kFloats / 2, kFloats / 2),
    CASE(divergent_barrier, 1, kThreads, kFloats, kFloats),
    CASE(exit_before_barrier, 1, kThreads, kFloats, kFloats),
    CASE(removed_warp_barrier, 1, kThreads, 2 * kFloats, 2 * kFloats),
    CASE(shuffle_as_barrier, 1, kThreads, 2 * kFloats, 2 * kFloats),
    CASE(wrong_mask, 1, kThreads),
    CASE(not_in_own_mask, 1, kThreads),
    CASE(different_collectives, 1, kThreads),
    CASE(barrier_against_shuffle, 1, kThreads),
    CASE(unwritten_shared_memory, 1, kThreads, kFloats, kFloats),
    CASE(shared_off_by_one, 1, kThreads, kFloats, kFloats),
    CASE(global_off_by_one, 1, kThreads),
    CASE(misaligned_load_vector, 1, kThreads),
    CASE(misaligned_float4, 1, kThreads),
    {"copy_without_wait", copy_case<CopyFault::kNoWait>()},
    {"copy_wait_for_one_less", copy_case<CopyFault::kWaitForOneLess>()},
    {"copy_without_commit", copy_case<CopyFault::kNoCommit>()},
    {"copy_without_barrier", copy_case<CopyFault::kNoBarrier>()},
    {"copy_misaligned", copy_case<CopyFault::kMisaligned>()},
    {"copy_outside", copy_case<CopyFault::kOutside>()},
    CASE(copy_over_what_is_read, 1, kThreads, kFloats, kFloats),
    CASE(copy_of_invalid, 1, kThreads, kFloats, kFloats),
    CASE(cross_block_race, 4, kThreads / 4),
    {"ticket_without_fence_before", ticket_case<TicketFault::kNoFenceBefore>()},
    {"ticket_without_fence_after", ticket_case<TicketFault::kNoFenceAfter>()},
    {"ticket_without_barrier", ticket_case<TicketFault::kNoBarrier>()},
    {"too_much_shared_memory", {removed_barrier<false>, removed_barrier<false>, 1, kThreads, kFloats, (227 << 10) + 1}},
};

// Runs one form of a case; an empty text where its result is right.
std::string run(const Case& tested, bool faulty) {
  std::vector<float> x(kThreads), out(kThreads, NAN);
  for (int i = 0; i < kThreads; ++i) x[i] = float(i + 1);
  try {
    launch(faulty ? tested.faulty : tested.right, tested.grid, tested.block,
           faulty ? tested.faulty_shared : tested.right_shared, nullptr, x.data(), out.data(), kThreads);
  } catch (const simt::Error& error) {
    return error.what();
  }
  for (int i = 0; i < kThreads; ++i) {
    if (out[i] != x[kThreads - 1 - i]) return "element " + std::to_string(i) + " is " + std::to_string(out[i]);
  }
  return "";
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc == 3 ? argv[1] : "";
  if (name != "right" && !kCases.contains(name)) {
    std::fprintf(stderr, "usage: engine_cases right|NAME SEED\n");
    return 2;
  }
  simt::set_seed(unsigned(std::strtoul(argv[2], nullptr, 10)));
  int failures = 0;
  for (const auto& [each, tested] : kCases) {
    if (name != "right" && name != each) continue;
    const std::string wrong = run(tested, name != "right");
    if (wrong.empty()) continue;
    std::printf("%s: %s\n", each.c_str(), wrong.c_str());
    ++failures;
  }
  return failures ? 1 : 0;
}
