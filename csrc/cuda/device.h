// The functions of the device that the kernels need, and the host functions that launch them. Only
// this file and device.cu know which compiler reads them: nvcc, or a host compiler with the engine
// of tests/cuda_on_cpu, which runs the same text on a CPU, thread by thread. For all else, kernels
// use CUDA's own names (threadIdx, __syncthreads, __shfl_xor_sync, float4, ...).
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

// nvcc reads this four times for each file, so it includes only what it must: cuda_fp16.h,
// cuda_bf16.h and <string> would cost 3 s of a file's compilation, half of the time of a file with
// few kernels.
#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include <algorithm>
#include <bit>
#include <cstdlib>

#include "simt.h"
#endif

namespace cmimtl::cuda {

#ifdef __CUDA_ARCH__
constexpr int kArch = __CUDA_ARCH__;  // 900 is compute capability 9.0
#else
constexpr int kArch = 0;  // 0 is the host, and the engine
#endif
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// bfloat16 and float16 as they lie in memory. Arithmetic is in float. The conversion from float
// rounds to nearest, ties to even.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// A vector of kCount elements that one instruction moves: 4, 8 or 16 bytes.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  static_assert(sizeof(T) * kCount <= 16, "the widest access has 16 bytes");
  T data[kCount];
  __device__ T& operator[](int i) { return data[i]; }
  __device__ const T& operator[](int i) const { return data[i]; }
};

#ifdef __CUDACC__

// The dynamic shared memory of the block, aligned to 16 bytes. The kernels use no other kind, so
// that its size is known at launch.
template <class T = unsigned char>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char cmimtl_shared[];
  return reinterpret_cast<T*>(cmimtl_shared);
}

// 2^x and 1 / x on the MUFU pipe. Subnormal numbers count as 0.
__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float rcp(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bfloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ float to_float(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
__device__ __forceinline__ void from_float(float x, float& out) { out = x; }
__device__ __forceinline__ void from_float(float x, bfloat16& out) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
}
__device__ __forceinline__ void from_float(float x, float16& out) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
}

// These access sizeof(V) bytes at once; p must be aligned to as many.
template <class V>
__device__ __forceinline__ V load_vector(const void* p) {
  return *static_cast<const V*>(p);
}
template <class V>
__device__ __forceinline__ void store_vector(void* p, V value) {
  *static_cast<V*>(p) = value;
}

// Copies kBytes from global to shared memory in the background, or writes zeros where `valid` is
// false (`global` is not read then). Both addresses are aligned to kBytes. The calling thread sees
// the bytes after copies_wait, the other threads after a barrier that follows it.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int from_bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    // These go past L1, where a tile that is read once would only evict others.
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(from_bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(kBytes), "r"(from_bytes)
                 : "memory");
  }
}
// Makes one group of the thread's copies since the last commit.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until no more than the latest kGroups of the thread's groups are in flight.
template <int kGroups>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// p, but the compiler knows only that it points to global memory.
template <class T>
__device__ __forceinline__ T* in_global_memory(T* p) {
  __builtin_assume(__isGlobal(p));
  return p;
}

// p moved by `bytes`. This is always the two instructions of a sum of 64 bits, whatever the
// compiler knows of p and `bytes`.
template <class T>
__device__ __forceinline__ T* bytes_on(T* p, int64_t bytes) {
  asm("add.s64 %0, %0, %1;" : "+l"(p) : "l"(bytes));
  return in_global_memory(p);
}

// p + steps * stride, in one instruction where `steps` is a constant. Left to itself, the compiler
// takes up to six, where it knows the stride to be the same in all lanes, or the product to be a
// shift.
template <class T>
__device__ __forceinline__ T* step_on(T* p, int steps, int stride) {
  T* q;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(q) : "r"(stride), "r"(steps * int(sizeof(T))), "l"(p));
  return in_global_memory(q);
}

// blockIdx.x and threadIdx.x, which are read anew each time. So what is computed from them again at
// the end of a kernel needs no registers in between.
__device__ __forceinline__ unsigned block_again() {
  unsigned x;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
  return x;
}
__device__ __forceinline__ unsigned thread_again() {
  unsigned x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}

// x, but the compiler does not know that it is the same as before, so no register keeps what was
// computed from it.
__device__ __forceinline__ int anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// log2 of a power of two. With it a division by that power is a shift; a division by an integer
// that is not known to the compiler takes 25 instructions.
__device__ __forceinline__ int log2_of(int power) { return 31 - __clz(power); }

// Ends the kernel with an error, in a case that cannot occur. The compiler moves no computation
// across the branch to it.
__device__ __forceinline__ void give_up() { asm volatile("trap;"); }

// x, but the compiler cannot know that it is the same in all lanes. Of a stride that it knows to be
// the same, it would make addresses with four uniform instructions and two others. x must be above
// 2^10 - 2^31.
__device__ __forceinline__ int stride_of_lane(int x) { return max(x, static_cast<int>(threadIdx.x) - 0x7fffffff); }

// Sets `bytes` bytes of device memory to zero, on `stream`, a cudaStream_t. Throws
// std::runtime_error where the device refuses.
void clear_memory(void* p, size_t bytes, void* stream);

// The number of warps that fill the GPU: `most`. In the engine, tests may set a smaller one.
constexpr int64_t warps_to_fill(int64_t most) { return most; }

// Runs a kernel on `stream`, with `shared` bytes of dynamic shared memory. `arguments` are pointers
// to its parameters. Throws std::runtime_error where the device refuses the launch.
void launch(const void* kernel, dim3 grid, dim3 block, size_t shared, void* stream, void** arguments);

template <class... Params>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, void* stream,
            const std::type_identity_t<Params>&... args) {
  const void* arguments[] = {&args...};
  launch(reinterpret_cast<const void*>(kernel), grid, block, shared, stream, const_cast<void**>(arguments));
}

#else  // what follows is the engine's

template <class T = unsigned char>
T* shared_memory() {
  return reinterpret_cast<T*>(simt::shared_memory());
}

// These results are as far from the exact values as those of the device may be.
inline float ex2(float x) { return simt::approximate_exp2(x); }
inline float rcp(float x) { return simt::approximate_reciprocal(x); }

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) { return simt::from_bits<float>(uint32_t(x.bits) << 16); }
inline float to_float(float16 x) { return simt::half_to_float(x.bits); }
inline void from_float(float x, float& out) { out = x; }
inline void from_float(float x, bfloat16& out) { out.bits = simt::float_to_bfloat16(x); }
inline void from_float(float x, float16& out) { out.bits = simt::float_to_half(x); }

template <class V>
V load_vector(const void* p, simt::Where where = simt::Where::current()) {
  simt::check_alignment("load_vector", p, alignof(V), where);
  return *static_cast<const V*>(p);
}
template <class V>
void store_vector(void* p, V value, simt::Where where = simt::Where::current()) {
  simt::check_alignment("store_vector", p, alignof(V), where);
  *static_cast<V*>(p) = value;
}

// The engine copies only when the copy is waited for, so that a missing wait is seen.
template <int kBytes>
void copy_async(void* shared, const void* global, bool valid = true, simt::Where where = simt::Where::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  simt::copy_async(shared, global, kBytes, valid, where);
}
inline void copies_commit() { simt::copies_commit(); }
template <int kGroups>
void copies_wait() {
  simt::copies_wait(kGroups);
}

template <class T>
T* in_global_memory(T* p) {
  return p;
}
template <class T>
T* bytes_on(T* p, int64_t bytes) {
  return p + bytes / int64_t(sizeof(T));
}
template <class T>
T* step_on(T* p, int steps, int stride) {
  return p + int64_t(steps) * stride;
}

inline unsigned block_again() { return blockIdx.x; }
inline unsigned thread_again() { return threadIdx.x; }
inline int anew(int x) { return x; }
inline int log2_of(int power) { return std::bit_width(unsigned(power)) - 1; }
inline void give_up() { std::abort(); }
inline int stride_of_lane(int x) { return x; }

inline void clear_memory(void* p, size_t bytes, void* /*stream*/) {
  std::fill_n(static_cast<char*>(p), bytes, char{0});
}

inline int64_t warps_to_fill(int64_t most) { return simt::warps_to_fill > 0 ? simt::warps_to_fill : most; }

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, void* /*stream*/, const Args&... args) {
  simt::launch(grid, block, shared, [&] { kernel(args...); });
}

#endif

template <class T>
__device__ __forceinline__ T from_float(float x) {
  T out;
  from_float(x, out);
  return out;
}

// The type of a vector's bytes as one number, or two, which one instruction moves and the compiler
// does not take apart.
template <size_t kBytes>
struct PackedOf;
template <>
struct PackedOf<2> {
  using type = uint16_t;
};
template <>
struct PackedOf<4> {
  using type = uint32_t;
};
template <>
struct PackedOf<8> {
  using type = uint2;
};
template <class V>
using Packed = typename PackedOf<sizeof(V)>::type;

template <class T>
__device__ __forceinline__ void to_floats(uint16_t x, float (&out)[1]) {
  out[0] = to_float(T{x});
}
template <class T>
__device__ __forceinline__ void to_floats(uint32_t x, float (&out)[1]) {
  out[0] = __uint_as_float(x);
}
template <class T>
__device__ __forceinline__ void to_floats(uint32_t x, float (&out)[2]) {
  out[0] = to_float(T{uint16_t(x)});
  out[1] = std::is_same_v<T, bfloat16> ? __uint_as_float(x & 0xffff0000u) : to_float(T{uint16_t(x >> 16)});
}
template <class T>
__device__ __forceinline__ void to_floats(uint2 x, float (&out)[2]) {
  out[0] = __uint_as_float(x.x), out[1] = __uint_as_float(x.y);
}
template <class T, int kCount>
__device__ __forceinline__ Vector<T, kCount> from_floats(const float (&x)[kCount]) {
  Vector<T, kCount> out;
#pragma unroll
  for (int i = 0; i < kCount; ++i) out[i] = from_float<T>(x[i]);
  return out;
}

}  // namespace cmimtl::cuda
