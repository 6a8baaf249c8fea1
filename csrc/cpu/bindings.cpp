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

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<void, Free>;

// Large results are new memory on every call, and the kernel hands it out page by page: with pages of 4 KiB that takes a
// third of the time of a long scan. Asks for pages of 2 MiB where the whole of one will be written; only a hint.
void prefer_large_pages(void* memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), first = (begin + kPage - 1) & ~(kPage - 1);
  const uintptr_t last = (begin + uintptr_t(bytes)) & ~(kPage - 1);
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

Memory allocate(int64_t bytes) {
  void* p = std::aligned_alloc(64, size_t(bytes + 63) / 64 * 64);
  STD_TORCH_CHECK(p, "cmimtl: workspace must fit the memory, got no ", bytes, " bytes");
  prefer_large_pages(p, bytes);
  return Memory(p);
}

Tensor with_large_pages(Tensor x) {
  prefer_large_pages(x.mutable_data_ptr(), x.numel() * int64_t(x.element_size()));
  return x;
}
Tensor result_like(const Tensor& x) { return with_large_pages(torch::stable::empty_like(x)); }

// Calls task(i) for i < count, on all threads.
template <class F>
void each(int64_t count, int64_t grain, const F& task) {
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i);
  });
}

// Calls task(i, scratch) for i < count, on all threads, each with scratch memory of its own.
template <class F>
void each_with_scratch(int64_t count, int64_t bytes, const F& task) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const Memory scratch = allocate(bytes);
    for (int64_t i = begin; i < end; ++i) task(i, scratch.get());
  });
}

// Calls task(batch, first, last, scratch) for pieces first … last - 1 of every sample, on all threads. A sample's pieces are
// dealt to as few tasks as give every thread as many. Which thread and task does a piece changes no bit of the result.
// bytes(count) is the scratch memory of a task of `count` pieces; a thread has one for all of its tasks.
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

// dweight and dbias of all samples, summed in the order of the batch. Blocks of elements, so that a cache line has one writer.
void sum_samples(const Kernels& k, const void* parts, int64_t samples, int64_t size, void* out) {
  constexpr int64_t kElements = 4096;
  each((size + kElements - 1) / kElements, 1, [&](int64_t i) {
    const int64_t begin = i * kElements, end = begin + kElements < size ? begin + kElements : size;
    k.reduce_samples(parts, samples, size, begin, end, out);
  });
}

void check_checkpoints(const char* op, const ScanInputs& x, const Kernels& k) {
  STD_TORCH_CHECK(x.checkpoint_every >= 0 && x.checkpoint_every <= k.most_steps && x.checkpoint_every % x.streams == 0,
                  op, ": checkpoint_every must be a multiple of ", x.streams, " up to ", k.most_steps, ", got ",
                  x.checkpoint_every);
}

// What all tasks read of the weights.
Memory prepare(const Kernels& k, const ScanForward& p) {
  Memory weights = allocate(k.weights_bytes(p.size));
  constexpr int64_t kLinesPerTask = 16;
  each(k.lines(p.size), kLinesPerTask, [&](int64_t line) { k.prepare(p, weights.get(), line); });
  return weights;
}

// Whether a scan of `pieces` lines or blocks of one sample is split over time: where threads would be idle, and there are
// enough chunks that waiting for each other three times in a segment does not matter: 256 chunks of one line take 260 us.
constexpr int64_t kSegment = 256;
bool split_over_time(const ScanSizes& s, int64_t pieces, int64_t steps_of_chunk) {
  return s.batch * pieces < torch::stable::get_num_threads() && s.steps >= kSegment / 2 * steps_of_chunk;
}

// Calls run(split, phase) for every phase of every segment of every sample; bytes(split) is the memory of one.
template <class Bytes, class Run>
void each_segment(const Kernels& k, const ScanForward& p, const Bytes& bytes, const Run& run) {
  Split split{0, 0, 0, kSegment, nullptr};
  const Memory memory = allocate(bytes(split));
  split.memory = memory.get();
  for (split.batch = 0; split.batch < p.size.batch; ++split.batch) {
    const int64_t chunks = k.chunks(p, split.batch);
    split.first = 0;
    do {
      split.count = chunks - split.first < kSegment ? chunks - split.first : kSegment;
      for (int phase = 0; phase < Split::kPhases; ++phase) run(split, phase);
      split.first += split.count;
    } while (split.first < chunks);
  }
}

struct Forward {
  Tensor out[2], last_state, checkpoints;
};

Forward forward(const char* op, ScanInputs x) {
  x.check(op);
  ScanForward p = x.params();
  const Kernels& k = kernels(p.dtype);
  check_checkpoints(op, x, k);
  const ScalarType acc = accumulation_of(x.u[0]);
  const auto& s = p.size;
  Forward result;
  for (int m = 0; m < x.streams; ++m) p.out[m] = out(result.out[m] = result_like(x.u[m]));
  result.last_state = empty(x.u[0], {s.batch, s.dim, s.dstate}, acc);
  p.last_state = result.last_state.mutable_data_ptr();
  if (s.checkpoint_every) {
    result.checkpoints = with_large_pages(empty(x.u[0], {s.batch, s.nchunks, s.dim, s.dstate}, acc));
    p.checkpoints = result.checkpoints.mutable_data_ptr();
  } else {
    result.checkpoints = nothing(x.u[0], acc);
  }
  const Memory weights = prepare(k, p);
  if (split_over_time(s, k.lines(s), s.checkpoint_every ? s.checkpoint_every : k.most_steps)) {
    each_segment(
        k, p, [&](const Split& split) { return k.forward_split_bytes(p, split); },
        [&](const Split& split, int phase) {
          each_with_scratch(
              k.forward_split_tasks(p, split, phase), k.forward_bytes(p.dtype, s.dstate, 1),
              [&](int64_t task, void* scratch) { k.forward_split(p, weights.get(), split, phase, task, scratch); });
        });
    return result;
  }
  each_task(
      s.batch, k.lines(s), [&](int64_t lines) { return k.forward_bytes(p.dtype, s.dstate, lines); },
      [&](int64_t batch, int64_t first, int64_t last, void* scratch) {
        k.forward(p, weights.get(), batch, first, last, scratch);
      });
  return result;
}

struct Backward {
  Tensor du[2], ddelta, dA, dB, dC, dD, dz[2], ddelta_bias, dinitial_state, out[2];
};

Backward backward(const char* op, const Tensor* dout, const Optional& dlast_state, ScanInputs x,
                  const Tensor& checkpoints, bool recompute_out) {
  x.check(op);
  STD_TORCH_CHECK(x.checkpoint_every > 0, op, ": checkpoint_every must be positive in the backward pass, got 0");
  ScanBackward q{};
  q.forward = x.params();
  ScanForward& p = q.forward;
  const Kernels& k = kernels(p.dtype);
  check_checkpoints(op, x, k);
  const auto& s = p.size;
  const ScalarType acc = accumulation_of(x.u[0]);
  const Tensor kept = plain(checkpoints);
  STD_TORCH_CHECK(kept.numel() == s.batch * s.nchunks * s.dim * s.dstate, op,
                  ": checkpoints must be those of the forward pass, got ", kept.numel(), " elements");
  p.checkpoints = const_cast<void*>(kept.const_data_ptr());
  const Optional dlast = plain(dlast_state);
  q.dlast_state = data(dlast);

  Backward r;
  for (int m = 0; m < x.streams; ++m) {
    STD_TORCH_CHECK(
        dout[m].dim() == 3 && dout[m].size(0) == s.batch && dout[m].size(1) == s.length && dout[m].size(2) == s.dim, op,
        ": dout must have the shape of its output");
    q.dout[m] = in(dout[m]);
    q.du[m] = out(r.du[m] = result_like(x.u[m]));
    r.dz[m] = x.z[m] ? result_like(*x.z[m]) : nothing(x.u[m], x.u[m].scalar_type());
    if (x.z[m]) q.dz[m] = out(r.dz[m]);
    r.out[m] = recompute_out ? result_like(x.u[m]) : nothing(x.u[m], x.u[m].scalar_type());
    if (recompute_out) p.out[m] = out(r.out[m]);
  }
  q.ddelta = out(r.ddelta = result_like(x.delta));
  r.dA = empty(x.u[0], {s.dim, s.dstate}, acc);
  r.dB = empty(x.u[0], {s.batch, s.steps, s.ngroups, s.dstate}, x.u[0].scalar_type());
  r.dC = empty(x.u[0], {s.batch, s.steps, s.ngroups, s.dstate}, x.u[0].scalar_type());
  r.dD = optional_like(x.D, x.u[0], acc);
  r.ddelta_bias = optional_like(x.delta_bias, x.u[0], acc);
  r.dinitial_state = optional_like(x.initial_state, x.u[0], acc);
  q.dB = r.dB.mutable_data_ptr(), q.dC = r.dC.mutable_data_ptr();
  if (x.initial_state) q.dinitial_state = r.dinitial_state.mutable_data_ptr();

  q.dA = r.dA.mutable_data_ptr();
  if (x.D) q.dD = r.dD.mutable_data_ptr();
  if (x.delta_bias) q.ddelta_bias = r.ddelta_bias.mutable_data_ptr();

  const int64_t lines = k.lines(s), blocks = k.blocks(s), lanes = lines * 64 / k.lane_bytes;
  const int64_t samples = s.batch ? s.batch : 1;  // the sums over no sample are 0
  const int64_t map = blocks * s.batch * s.steps * s.dstate, channels = samples * lanes;
  const int64_t bytes = k.lane_bytes * (2 * map + channels * (s.dstate + 2));
  const Memory memory = allocate(bytes);
  if (!s.batch) std::memset(memory.get(), 0, size_t(bytes));
  char* next = static_cast<char*>(memory.get());
  const auto take = [&](int64_t count) { return static_cast<void*>(std::exchange(next, next + count * k.lane_bytes)); };
  const BackwardParts parts{take(map), take(map), take(channels * s.dstate), take(channels), take(channels)};

  const Memory weights = prepare(k, p);
  if (split_over_time(s, blocks, s.checkpoint_every)) {
    each_segment(
        k, p, [&](const Split& split) { return k.backward_split_bytes(q, split); },
        [&](const Split& split, int phase) {
          each_with_scratch(k.backward_split_tasks(q, split, phase), k.backward_bytes(q, 1),
                            [&](int64_t task, void* scratch) {
                              k.backward_split(q, weights.get(), parts, split, phase, task, scratch);
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
  return r;
}

// The schemas, argument by argument.

std::tuple<Tensor, Tensor, Tensor> selective_scan_fwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D,
                                                      Optional z, Optional delta_bias, Optional initial_state,
                                                      Optional lengths, bool delta_softplus, bool reverse,
                                                      int64_t checkpoint_every) {
  Forward r = forward("selective_scan_fwd", {1,
                                             {u, Tensor()},
                                             {z, {}},
                                             delta,
                                             A,
                                             B,
                                             C,
                                             D,
                                             delta_bias,
                                             initial_state,
                                             lengths,
                                             delta_softplus,
                                             reverse,
                                             checkpoint_every});
  return {r.out[0], r.last_state, r.checkpoints};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> selective_scan_bwd(
    Tensor dout, Optional dlast_state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional z,
    Optional delta_bias, Optional initial_state, Optional lengths, Tensor checkpoints, bool delta_softplus,
    bool reverse, int64_t checkpoint_every, bool recompute_out) {
  Backward r = backward("selective_scan_bwd", &dout, dlast_state,
                        {1,
                         {u, Tensor()},
                         {z, {}},
                         delta,
                         A,
                         B,
                         C,
                         D,
                         delta_bias,
                         initial_state,
                         lengths,
                         delta_softplus,
                         reverse,
                         checkpoint_every},
                        checkpoints, recompute_out);
  return {r.du[0], r.ddelta, r.dA, r.dB, r.dC, r.dD, r.dz[0], r.ddelta_bias, r.dinitial_state, r.out[0]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_selective_scan_fwd(Tensor v, Tensor t, Tensor delta, Tensor A,
                                                                    Tensor B, Tensor C, Optional D, Optional z_v,
                                                                    Optional z_t, Optional delta_bias,
                                                                    Optional initial_state, Optional lengths,
                                                                    bool delta_softplus, bool reverse,
                                                                    int64_t checkpoint_every) {
  Forward r = forward("cross_selective_scan_fwd", {2,
                                                   {v, t},
                                                   {z_v, z_t},
                                                   delta,
                                                   A,
                                                   B,
                                                   C,
                                                   D,
                                                   delta_bias,
                                                   initial_state,
                                                   lengths,
                                                   delta_softplus,
                                                   reverse,
                                                   checkpoint_every});
  return {r.out[0], r.out[1], r.last_state, r.checkpoints};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
cross_selective_scan_bwd(Tensor dout_v, Tensor dout_t, Optional dlast_state, Tensor v, Tensor t, Tensor delta, Tensor A,
                         Tensor B, Tensor C, Optional D, Optional z_v, Optional z_t, Optional delta_bias,
                         Optional initial_state, Optional lengths, Tensor checkpoints, bool delta_softplus,
                         bool reverse, int64_t checkpoint_every, bool recompute_out) {
  const Tensor dout[2] = {dout_v, dout_t};
  Backward r = backward("cross_selective_scan_bwd", dout, dlast_state,
                        {2,
                         {v, t},
                         {z_v, z_t},
                         delta,
                         A,
                         B,
                         C,
                         D,
                         delta_bias,
                         initial_state,
                         lengths,
                         delta_softplus,
                         reverse,
                         checkpoint_every},
                        checkpoints, recompute_out);
  return {r.du[0], r.du[1],       r.ddelta,         r.dA,     r.dB,    r.dC, r.dD, r.dz[0],
          r.dz[1], r.ddelta_bias, r.dinitial_state, r.out[0], r.out[1]};
}

// Keeps alive the contiguous copies that the struct points to.
struct ConvInputs {
  Tensor x, weight;
  Optional bias, lengths;

  ConvForward params(const char* op, bool silu, bool reverse) {
    STD_TORCH_CHECK(x.dim() == 3 && weight.dim() == 2 && weight.size(0) == x.size(2), op,
                    ": weight must have shape (dim, width) with the dim of x");
    STD_TORCH_CHECK(!bias || bias->numel() == x.size(2), op, ": bias must have shape (dim,)");
    STD_TORCH_CHECK(!lengths || lengths->numel() == x.size(0), op, ": lengths must have shape (batch,)");
    weight = plain(weight), bias = plain(bias), lengths = plain(lengths);
    ConvForward p{};
    p.batch = x.size(0), p.length = x.size(1), p.dim = x.size(2), p.width = weight.size(1);
    p.dtype = dtype_of(x);
    p.silu = silu, p.reverse = reverse;
    p.x = in(x);
    p.weight = weight.const_data_ptr();
    p.bias = data(bias);
    p.lengths = static_cast<const int64_t*>(data(lengths));
    return p;
  }
};

Tensor causal_conv1d_fwd(Tensor x, Tensor weight, Optional bias, Optional lengths, bool silu, bool reverse) {
  ConvInputs inputs{x, weight, bias, lengths};
  ConvForward p = inputs.params("causal_conv1d_fwd", silu, reverse);
  Tensor y = result_like(x);
  p.out = out(y);
  const Kernels& k = kernels(p.dtype);
  each_task(
      p.batch, k.conv_lines(p.dim), [&](int64_t lines) { return k.conv_bytes(p.width, lines); },
      [&](int64_t batch, int64_t first, int64_t last, void* scratch) {
        k.conv_forward(p, batch, first, last, scratch);
      });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> causal_conv1d_bwd(Tensor dout, Tensor x, Tensor weight, Optional bias,
                                                     Optional lengths, bool silu, bool reverse) {
  ConvInputs inputs{x, weight, bias, lengths};
  ConvBackward q{};
  q.forward = inputs.params("causal_conv1d_bwd", silu, reverse);
  const ConvForward& p = q.forward;
  STD_TORCH_CHECK(dout.dim() == 3 && dout.size(0) == p.batch && dout.size(1) == p.length && dout.size(2) == p.dim,
                  "causal_conv1d_bwd: dout must have the shape of x");
  const ScalarType acc = accumulation_of(x);
  Tensor dx = result_like(x), dweight = empty(x, {p.dim, p.width}, acc), dbias = optional_like(bias, x, acc);
  q.dout = in(dout);
  q.dx = out(dx);
  const Kernels& k = kernels(p.dtype);
  const int64_t word = k.lane_bytes, channels = p.batch * p.dim;
  const Memory parts = allocate(word * channels * (p.width + 1) + 64);
  char *dweight_parts = static_cast<char*>(parts.get()), *dbias_parts = dweight_parts + word * channels * p.width;
  each_task(
      p.batch, k.conv_lines(p.dim), [&](int64_t lines) { return k.conv_bytes(p.width, lines); },
      [&](int64_t batch, int64_t first, int64_t last, void* scratch) {
        k.conv_backward(q, dweight_parts, dbias_parts, batch, first, last, scratch);
      });
  sum_samples(k, dweight_parts, p.batch, p.dim * p.width, dweight.mutable_data_ptr());
  if (bias) sum_samples(k, dbias_parts, p.batch, p.dim, dbias.mutable_data_ptr());
  return {dx, dweight, dbias};
}

std::string isa() { return level().name; }

}  // namespace
}  // namespace cmimtl::cpu

STABLE_TORCH_LIBRARY_IMPL(cmimtl, CPU, m) {
  using namespace cmimtl::cpu;
  m.impl("selective_scan_fwd", TORCH_BOX(&selective_scan_fwd));
  m.impl("selective_scan_bwd", TORCH_BOX(&selective_scan_bwd));
  m.impl("cross_selective_scan_fwd", TORCH_BOX(&cross_selective_scan_fwd));
  m.impl("cross_selective_scan_bwd", TORCH_BOX(&cross_selective_scan_bwd));
  m.impl("causal_conv1d_fwd", TORCH_BOX(&causal_conv1d_fwd));
  m.impl("causal_conv1d_bwd", TORCH_BOX(&causal_conv1d_bwd));
}

STABLE_TORCH_LIBRARY(cmimtl_cpu, m) { m.def("isa() -> str"); }
STABLE_TORCH_LIBRARY_IMPL(cmimtl_cpu, CompositeExplicitAutograd, m) { m.impl("isa", TORCH_BOX(&cmimtl::cpu::isa)); }
