// The ops on CPU tensors: allocation, threads, the choice of the instruction set.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>

#include "bindings_common.h"
#include "kernels.h"

namespace cmimtl::cpu {
namespace {

struct Level {
  const char* name;
  const Kernels *single, *wide;
};

Level detect() {
  // The variable by which PyTorch's own kernels are capped. It can only lower the level.
  const char* cap = std::getenv("ATEN_CPU_CAPABILITY");
  const auto below = [&](const char* name) { return cap && !std::strcmp(cap, name); };
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && !below("default") && !below("avx2")) return {"avx512", &avx512::kFloat, &avx512::kDouble};
  if (has_avx2 && !below("default")) return {"avx2", &avx2::kFloat, &avx2::kDouble};
#endif
  return {"baseline", &baseline::kFloat, &baseline::kDouble};
}

const Level& level() {
  static const Level found = detect();
  return found;
}

const Kernels& kernels(DType dtype) { return dtype == DType::kFloat64 ? *level().wide : *level().single; }

int64_t word_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }  // bytes of an accumulator

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<void, Free>;

Memory allocate(int64_t bytes) {
  void* p = std::aligned_alloc(64, size_t(bytes + 63) / 64 * 64);
  STD_TORCH_CHECK(p, "cmimtl: workspace must fit the memory, got no ", bytes, " bytes");
  return Memory(p);
}

// Calls task(batch, first, last) for blocks first … last - 1 of every sample, on all threads. A sample's blocks are dealt to
// as few tasks as give every thread as many. Which thread and task runs a block changes no bit of the result.
template <class F>
void each_task(int64_t batch, int64_t blocks, const F& task) {
  const int64_t threads = torch::stable::get_num_threads();
  int64_t parts = threads / std::gcd(batch, threads);
  parts = parts < blocks ? parts : blocks;
  torch::stable::parallel_for(0, batch * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i % parts;
      task(i / parts, blocks * part / parts, blocks * (part + 1) / parts);
    }
  });
}

// dA, dD, … of all samples, summed in the order of the batch. Blocks of elements, so that a cache line has one writer.
void sum_samples(const Kernels& k, const void* parts, int64_t samples, int64_t size, void* out) {
  constexpr int64_t kElements = 4096;
  torch::stable::parallel_for(0, (size + kElements - 1) / kElements, 1, [&](int64_t begin, int64_t end) {
    const int64_t last = end * kElements < size ? end * kElements : size;
    k.reduce_samples(parts, samples, size, begin * kElements, last, out);
  });
}

constexpr int64_t kMostBetweenCheckpoints = 32;  // what a tile holds, see tile.h

struct CpuKernels {
  static void check_scan(const char* op, const ScanForward& p) {
    const int64_t every = p.size.checkpoint_every;
    STD_TORCH_CHECK(every >= 0 && every <= kMostBetweenCheckpoints && every % p.streams == 0, op,
                    ": checkpoint_every must be a multiple of ", p.streams, " up to ", kMostBetweenCheckpoints,
                    ", got ", every);
  }
  static void check_conv(const char*, const ConvForward&) {}

  static void scan_forward(const ScanForward& p, const Tensor&) {
    const Kernels& k = kernels(p.dtype);
    const auto& s = p.size;
    each_task(s.batch, k.scan_blocks(s), [&](int64_t batch, int64_t first, int64_t last) {
      k.forward(p, batch, first, last, allocate(k.forward_bytes(s.dstate, last - first)).get());
    });
  }

  static void scan_backward(const ScanBackward& q, const Tensor&) {
    const auto& s = q.forward.size;
    const Kernels& k = kernels(q.forward.dtype);
    const int64_t blocks = k.scan_blocks(s), word = word_of(q.forward.dtype);
    const int64_t map = blocks * s.batch * s.steps * s.dstate, states = s.batch * s.dim * s.dstate,
                  channels = s.batch * s.dim;
    const Memory parts = allocate(word * (2 * map + states + 2 * channels) + 64);
    char* next = static_cast<char*>(parts.get());
    const auto take = [&](int64_t count) { return std::exchange(next, next + count * word); };
    void *dB = take(map), *dC = take(map), *dA = take(states), *dD = take(channels), *dbias = take(channels);

    each_task(s.batch, blocks, [&](int64_t batch, int64_t first, int64_t last) {
      const Memory scratch = allocate(k.backward_bytes(s.dstate, last - first));
      k.backward(q, dB, dC, dA, dD, dbias, batch, first, last, scratch.get());
    });
    constexpr int64_t kStepsPerTask = 64;
    torch::stable::parallel_for(0, s.batch * s.steps, kStepsPerTask, [&](int64_t begin, int64_t end) {
      const Memory row = allocate(s.dstate * word);
      for (int64_t i = begin; i < end; ++i) k.reduce_maps(q, dB, dC, i / s.steps, i % s.steps, row.get());
    });
    sum_samples(k, dA, s.batch, s.dim * s.dstate, q.dA);
    if (q.dD) sum_samples(k, dD, s.batch, s.dim, q.dD);
    if (q.ddelta_bias) sum_samples(k, dbias, s.batch, s.dim, q.ddelta_bias);
  }

  static void conv_forward(const ConvForward& p, const Tensor&) {
    const Kernels& k = kernels(p.dtype);
    each_task(p.batch, k.conv_blocks(p.dim), [&](int64_t batch, int64_t first, int64_t last) {
      const Memory scratch = allocate(k.conv_bytes(p.width));
      for (int64_t block = first; block < last; ++block) k.conv_forward(p, batch, block, scratch.get());
    });
  }

  static void conv_backward(const ConvBackward& q, const Tensor&) {
    const ConvForward& p = q.forward;
    const Kernels& k = kernels(p.dtype);
    const int64_t word = word_of(p.dtype), channels = p.batch * p.dim;
    const Memory parts = allocate(word * channels * (p.width + 1) + 64);
    char *dweight = static_cast<char*>(parts.get()), *dbias = dweight + word * channels * p.width;
    each_task(p.batch, k.conv_blocks(p.dim), [&](int64_t batch, int64_t first, int64_t last) {
      const Memory scratch = allocate(k.conv_bytes(p.width));
      for (int64_t block = first; block < last; ++block)
        k.conv_backward(q, dweight, dbias, batch, block, scratch.get());
    });
    sum_samples(k, dweight, p.batch, p.dim * p.width, q.dweight);
    if (q.dbias) sum_samples(k, dbias, p.batch, p.dim, q.dbias);
  }
};

std::string isa() { return level().name; }

}  // namespace
}  // namespace cmimtl::cpu

STABLE_TORCH_LIBRARY_IMPL(cmimtl, CPU, m) { cmimtl::Ops<cmimtl::cpu::CpuKernels>::implement(m); }

STABLE_TORCH_LIBRARY(cmimtl_cpu, m) { m.def("isa() -> str"); }
STABLE_TORCH_LIBRARY_IMPL(cmimtl_cpu, CompositeExplicitAutograd, m) { m.impl("isa", TORCH_BOX(&cmimtl::cpu::isa)); }
