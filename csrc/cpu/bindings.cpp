// The ops on CPU tensors: allocation, threads, the choice of the instruction set.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "bindings_common.h"
#include "level.h"

namespace cmimtl::cpu {
namespace {

const Level& level() {
  static const Level found = choose_level();
  return found;
}

const Kernels& kernels(DType dtype) { return dtype == DType::kFloat64 ? *level().wide : *level().single; }

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<void, Free>;

// Calls task(i) for i < count, on all threads.
template <class F>
void each(int64_t count, int64_t grain, const F& task) {
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i);
  });
}

// Large results are new memory on every call, and the operating system hands it out page by page.
// With pages of 4 KiB that takes a third of the time of a long scan. So pages of 2 MiB are asked
// for, where a whole page will be written. For kAlwaysNew bytes and more, glibc always takes new
// memory from the system; its pages are asked for here, and each thread asks for a part of them.
// Otherwise threads that go through the same rows would come to a new page together, and the system
// would zero one for each: on two threads a scan of 16384 steps and 1536 channels took 23 % longer,
// and 22 % with its backward pass. All of this is a hint and may fail.
void prepare_pages(void* memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), first = (begin + kPage - 1) & ~(kPage - 1);
  const uintptr_t last = (begin + uintptr_t(bytes)) & ~(kPage - 1);
  if (first >= last) return;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#if defined(MADV_POPULATE_WRITE)
  constexpr int64_t kAlwaysNew = 32 << 20;
  if (bytes < kAlwaysNew) return;
  each(int64_t((last - first) / kPage), 1, [&](int64_t i) {
    void* page = reinterpret_cast<void*>(first + uintptr_t(i) * kPage);
    // Whether the page has been touched before, as with an allocator that keeps memory. To ask for
    // 512 small pages again takes 80 us.
    unsigned char there;
    if (mincore(page, 1, &there) || !(there & 1)) madvise(page, kPage, MADV_POPULATE_WRITE);
  });
#endif
#endif
}

Memory allocate(int64_t bytes) {
  void* p = std::aligned_alloc(64, size_t(bytes + 63) / 64 * 64);
  CMIMTL_CHECK(p, "cmimtl: workspace must fit the memory, got no ", bytes, " bytes");
  prepare_pages(p, bytes);
  return Memory(p);
}

// Calls task(i, scratch) for i < count, on all threads, each with scratch memory of its own.
template <class F>
void each_with_scratch(int64_t count, int64_t bytes, const F& task) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const Memory scratch = allocate(bytes);
    for (int64_t i = begin; i < end; ++i) task(i, scratch.get());
  });
}

// Calls task(batch, first, last, scratch) for the pieces first … last - 1 of every sample, on all
// threads. A sample's pieces are dealt to as few tasks as possible with which every thread gets as
// many. Which thread and which task computes a piece changes no bit of the result. bytes(count) is
// the size of the scratch memory of a task of `count` pieces; each thread has one scratch memory
// for all of its tasks.
template <class Bytes, class F>
void each_task(int64_t batch, int64_t pieces, const Bytes& bytes, const F& task) {
  const int64_t threads = torch::stable::get_num_threads();
  int64_t parts = threads / std::gcd(batch, threads);
  parts = parts < pieces ? parts : pieces;
  if (parts == 0) return;
  each_with_scratch(batch * parts, bytes((pieces + parts - 1) / parts), [&](int64_t i, void* scratch) {
    const int64_t part = i % parts;
    task(i / parts, pieces * part / parts, pieces * (part + 1) / parts, scratch);
  });
}

// Adds up dweight and dbias of all samples in the order of the batch. Threads take blocks of
// elements, so that a cache line has one writer.
void sum_samples(const ConvKernels& k, const void* parts, int64_t samples, int64_t size, void* out) {
  constexpr int64_t kElements = 4096;
  each((size + kElements - 1) / kElements, 1, [&](int64_t i) {
    const int64_t begin = i * kElements, end = begin + kElements < size ? begin + kElements : size;
    k.reduce_samples(parts, samples, size, begin, end, out);
  });
}

// Lays out the weights as all tasks read them.
Memory prepare(const Kernels& k, const ScanForward& p) {
  Memory weights = allocate(k.weights_bytes(p.size));
  constexpr int64_t kLinesPerTask = 16;
  each(k.lines(p.size), kLinesPerTask, [&](int64_t line) { k.prepare(p, weights.get(), line); });
  return weights;
}

// Whether a scan of `pieces` lines or blocks of one sample goes through the phases of
// scan_phases.h. It does where threads would be idle otherwise, and where there are so many chunks
// that it does not matter that threads wait for each other three times in a segment (256 chunks of
// one line take 260 us).
constexpr int64_t kSegmentChunks = 256;
bool worth_phases(const ScanSizes& s, int64_t pieces, int64_t steps_of_chunk) {
  return s.batch * pieces < torch::stable::get_num_threads() && s.steps >= kSegmentChunks / 2 * steps_of_chunk;
}

// Calls run(segment, phase) for every phase of every segment of every sample; bytes(segment) is the
// memory of a segment.
template <class Bytes, class Run>
void each_segment(const Kernels& k, const ScanForward& p, const Bytes& bytes, const Run& run) {
  Segment segment{.batch = 0, .first = 0, .count = 0, .most = kSegmentChunks, .memory = nullptr};
  const Memory memory = allocate(bytes(segment));
  segment.memory = memory.get();
  for (segment.batch = 0; segment.batch < p.size.batch; ++segment.batch) {
    const int64_t chunks = k.chunks(p, segment.batch);
    segment.first = 0;
    do {
      segment.count = chunks - segment.first < kSegmentChunks ? chunks - segment.first : kSegmentChunks;
      for (int phase = 0; phase < Segment::kPhases; ++phase) run(segment, phase);
      segment.first += segment.count;
    } while (segment.first < chunks);
  }
}

struct CpuKernels {
  static Tensor result(Tensor x) {
    prepare_pages(x.mutable_data_ptr(), x.numel() * int64_t(x.element_size()));
    return x;
  }

  static void check_scan(const char* op, const ScanForward& p, bool /*backward*/) {
    const int64_t every = p.size.checkpoint_every, most = kernels(p.dtype).most_steps;
    CMIMTL_CHECK(every >= 0 && every <= most && every % p.streams == 0, op, ": checkpoint_every must be a multiple of ",
                 p.streams, " up to ", most, ", got ", every);
  }
  static void check_conv(const char*, const ConvForward&, bool /*backward*/) {}

  static void scan_forward(const ScanForward& p, const Tensor&) {
    const Kernels& k = kernels(p.dtype);
    const auto& s = p.size;
    const Memory weights = prepare(k, p);
    if (worth_phases(s, k.lines(s), s.checkpoint_every ? s.checkpoint_every : k.most_steps)) {
      each_segment(
          k, p, [&](const Segment& segment) { return k.forward_phases_bytes(p, segment); },
          [&](const Segment& segment, int phase) {
            each_with_scratch(
                k.forward_phase_tasks(p, segment, phase), k.forward_bytes(p.dtype, s.dstate, 1),
                [&](int64_t task, void* scratch) { k.forward_phase(p, weights.get(), segment, phase, task, scratch); });
          });
      return;
    }
    each_task(
        s.batch, k.lines(s), [&](int64_t lines) { return k.forward_bytes(p.dtype, s.dstate, lines); },
        [&](int64_t batch, int64_t first, int64_t last, void* scratch) {
          k.forward(p, weights.get(), batch, first, last, scratch);
        });
  }

  static void scan_backward(const ScanBackward& q, const Tensor&) {
    const ScanForward& p = q.forward;
    const Kernels& k = kernels(p.dtype);
    const auto& s = p.size;
    const int64_t lines = k.lines(s), blocks = k.blocks(s), lanes = lines * 64 / k.lane_bytes;
    const int64_t samples = s.batch ? s.batch : 1;  // the sums over no sample are 0
    const int64_t map = blocks * s.batch * s.steps * s.dstate, channels = samples * lanes;
    const int64_t bytes = k.lane_bytes * (2 * map + channels * (s.dstate + 2));
    const Memory memory = allocate(bytes);
    if (!s.batch) std::memset(memory.get(), 0, size_t(bytes));
    char* next = static_cast<char*>(memory.get());
    const auto take = [&](int64_t count) {
      return static_cast<void*>(std::exchange(next, next + count * k.lane_bytes));
    };
    const BackwardParts parts{.dB = take(map),
                              .dC = take(map),
                              .dA = take(channels * s.dstate),
                              .dD = take(channels),
                              .dbias = take(channels)};

    const Memory weights = prepare(k, p);
    if (worth_phases(s, blocks, s.checkpoint_every)) {
      each_segment(
          k, p, [&](const Segment& segment) { return k.backward_phases_bytes(q, segment); },
          [&](const Segment& segment, int phase) {
            each_with_scratch(k.backward_phase_tasks(q, segment, phase), k.backward_bytes(q, 1),
                              [&](int64_t task, void* scratch) {
                                k.backward_phase(q, weights.get(), parts, segment, phase, task, scratch);
                              });
          });
    } else {
      each_task(
          s.batch, blocks, [&](int64_t blocks) { return k.backward_bytes(q, blocks); },
          [&](int64_t batch, int64_t first, int64_t last, void* scratch) {
            k.backward(q, weights.get(), parts, batch, first, last, scratch);
          });
    }
    constexpr int64_t kStepsPerTask = 64;
    torch::stable::parallel_for(0, s.batch * s.steps, kStepsPerTask, [&](int64_t begin, int64_t end) {
      const Memory row = allocate(s.dstate * k.lane_bytes);
      for (int64_t i = begin; i < end; ++i) k.reduce_maps(q, parts, i / s.steps, i % s.steps, row.get());
    });
    each(lines, 8, [&](int64_t line) { k.reduce_weights(q, parts, line); });
  }

  static void conv_forward(const ConvForward& p, const Tensor&) {
    const ConvKernels& k = *kernels(p.dtype).conv;
    each_task(
        p.batch, k.lines(p.dim), [&](int64_t lines) { return k.bytes(p.width, lines); },
        [&](int64_t batch, int64_t first, int64_t last, void* scratch) { k.forward(p, batch, first, last, scratch); });
  }

  static void conv_backward(const ConvBackward& q, const Tensor&) {
    const ConvForward& p = q.forward;
    const ConvKernels& k = *kernels(p.dtype).conv;
    const int64_t word = k.lane_bytes, channels = p.batch * p.dim;
    const Memory parts = allocate(word * channels * (p.width + 1) + 64);
    char *dweight = static_cast<char*>(parts.get()), *dbias = dweight + word * channels * p.width;
    each_task(
        p.batch, k.lines(p.dim), [&](int64_t lines) { return k.bytes(p.width, lines); },
        [&](int64_t batch, int64_t first, int64_t last, void* scratch) {
          k.backward(q, dweight, dbias, batch, first, last, scratch);
        });
    sum_samples(k, dweight, p.batch, p.dim * p.width, q.dweight);
    if (q.dbias) sum_samples(k, dbias, p.batch, p.dim, q.dbias);
  }
};

std::string isa() { return level().name; }
// It is the same for every instruction set. It is asked for at import, when none is chosen yet: a
// wrong CMIMTL_CPU_CAPABILITY is an error of the first call, not of the import.
int64_t checkpoint_every() { return baseline::kFloat.most_steps; }

}  // namespace
}  // namespace cmimtl::cpu

STABLE_TORCH_LIBRARY_IMPL(cmimtl, CPU, m) { cmimtl::Ops<cmimtl::cpu::CpuKernels>::implement(m); }

// What the library tells of itself.
STABLE_TORCH_LIBRARY(cmimtl_cpu, m) {
  m.def("isa() -> str");
  m.def("checkpoint_every() -> int");  // steps between two states that the forward pass keeps
}
STABLE_TORCH_LIBRARY_IMPL(cmimtl_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&cmimtl::cpu::isa));
  m.impl("checkpoint_every", TORCH_BOX(&cmimtl::cpu::checkpoint_every));
}
