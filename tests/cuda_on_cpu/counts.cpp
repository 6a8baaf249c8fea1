// Counts the bytes of global memory that the scans read and write when they run, tensor by tensor.
//
// The kernels are compiled for the thread sanitizer, so that each of their accesses calls a function of its library; the
// functions here stand in for it. What lies in no tensor is a stack, shared memory or the engine's own, and is not counted.
// An asynchronous copy counts where it is waited for.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/split.h"
#include "cuda/traffic.h"

namespace {

using namespace cmimtl;
using namespace cmimtl::cuda;

// Bytes of one kind of access: all of them, and each once in a block and in a launch.
class Count {
 public:
  int64_t all = 0, by_blocks = 0, by_launches = 0;

  explicit Count(size_t bytes) : block_(bytes), launch_(bytes) {}
  // `written`: of reads, which find in the cache what the same launch has written.
  void add(size_t at, size_t bytes, const Count* written = nullptr) {
    all += int64_t(bytes);
    for (size_t i = at; i < at + bytes; ++i) {
      if (block_[i] != simt::blocks_begun) block_[i] = simt::blocks_begun, ++by_blocks;
      if (launch_[i] == simt::launches_begun) continue;
      launch_[i] = simt::launches_begun;
      by_launches += !written || written->launch_[i] != simt::launches_begun;
    }
  }

 private:
  std::vector<unsigned> block_, launch_;  // the last one that touched the byte
};

struct Tensor {
  const char* name;
  unsigned char* begin;
  size_t bytes;
  Count reads{bytes}, writes{bytes};
};

std::vector<Tensor> tensors;  // by address

void count(const void* p, size_t bytes, bool write) {
  unsigned char* const at = static_cast<unsigned char*>(const_cast<void*>(p));
  auto after = std::upper_bound(tensors.begin(), tensors.end(), at,
                                [](const unsigned char* p, const Tensor& x) { return p < x.begin; });
  if (after == tensors.begin()) return;
  Tensor& x = *--after;
  if (at >= x.begin + x.bytes) return;
  if (at + bytes > x.begin + x.bytes) std::abort();
  const size_t offset = size_t(at - x.begin);
  write ? x.writes.add(offset, bytes) : x.reads.add(offset, bytes, &x.writes);
}

// The tensors of a call, without gaps, zero. They are watched while it lives.
class Call {
 public:
  Call(const ScanSizes& s, const ScanOptions& o) : s_(s), o_(o), element_(o.dtype == DType::kFloat32 ? 4 : 2) {
    p.size = s, p.dtype = o.dtype, p.streams = o.streams, p.delta_softplus = true;
    each_stream(p.u, "u");
    if (o.gate) each_stream(p.z, "z");
    p.delta = strided<In>("delta", s.steps);
    p.A = make("A", s.dim * s.dstate), p.B = map("B"), p.C = map("C");
    if (o.skip) p.D = make("D", s.dim);
    if (o.bias) p.delta_bias = make("delta_bias", s.dim);
    if (o.state) p.initial_state = make("initial_state", states(1));
    if (s.nchunks) p.checkpoints = make("checkpoints", states(s.nchunks));
  }
  ~Call() { tensors.clear(); }
  Call(const Call&) = delete;

  void forward() {
    each_stream(p.out, "out");
    p.last_state = make("last_state", states(1));
    const ScanPlan plan = plan_forward(s_, channels_in_pairs(p), warps_to_fill(kMostWarps));
    float* const workspace = allocate(size_t(forward_elements(s_)) * sizeof(float));
    watch(make_split(s_, plan, false, workspace), plan);
    scan_forward(p, workspace, nullptr);
  }
  void backward() {
    ScanBackward q{};
    each_stream(q.dout, "dout");
    if (o_.last_gradient) q.dlast_state = make("dlast_state", states(1));
    each_stream(q.du, "du");
    if (o_.gate) each_stream(q.dz, "dz");
    q.ddelta = strided<Out>("ddelta", s_.steps);
    q.dA = make("dA", s_.dim * s_.dstate), q.dB = map_data("dB"), q.dC = map_data("dC");
    if (o_.skip) q.dD = make("dD", s_.dim);
    if (o_.bias) q.ddelta_bias = make("ddelta_bias", s_.dim);
    if (o_.state) q.dinitial_state = make("dinitial_state", states(1));
    q.forward = p;
    const ScanPlan plan = plan_backward(s_);
    float* const base = allocate(size_t(backward_elements(s_)) * sizeof(float));
    const BackwardWorkspace workspace(s_, plan, base);
    const int64_t parts = s_.batch * plan.segments + plan.sums_of_samples(s_),
                  maps = plan.tiles_per_group * elements_of_map();
    watch(workspace.split, plan);
    watch("parts of dA", workspace.partial.dA, parts * s_.dim * s_.dstate);
    watch("parts of dB", workspace.partial.dB, maps), watch("parts of dC", workspace.partial.dC, maps);
    watch("parts of dD", workspace.partial.dD, parts * s_.dim);
    watch("parts of ddelta_bias", workspace.partial.dbias, parts * s_.dim);
    scan_backward(q, base, nullptr);
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  ScanForward p{};
  const ScanSizes s_;
  const ScanOptions o_;
  const int64_t element_;
  std::vector<std::unique_ptr<float, Free>> memory_;

  int64_t states(int64_t slots) const { return s_.batch * slots * s_.dim * s_.dstate; }
  int64_t elements_of_map() const { return s_.batch * s_.steps * s_.ngroups * s_.dstate; }

  float* allocate(size_t bytes) {
    constexpr size_t kAlignment = 256;
    bytes = (bytes / kAlignment + 1) * kAlignment;
    memory_.emplace_back(static_cast<float*>(std::aligned_alloc(kAlignment, bytes)));
    std::fill_n(reinterpret_cast<unsigned char*>(memory_.back().get()), bytes, 0);
    return memory_.back().get();
  }
  void watch(const char* name, float* data, int64_t elements, int64_t element = sizeof(float)) {
    const auto begin = reinterpret_cast<unsigned char*>(data);
    const auto before = [](const Tensor& x, const unsigned char* p) { return x.begin < p; };
    const auto at = std::lower_bound(tensors.begin(), tensors.end(), begin, before);
    tensors.insert(at, Tensor{name, begin, size_t(elements * element)});
  }
  void watch(const Split& split, const ScanPlan& plan) {
    if (plan.segments == 1) return;
    watch("states of segments", split.states, states(plan.segments));
    watch("sums of segments", split.step_size_sums, s_.batch * plan.segments * s_.dim);
  }
  float* make(const char* name, int64_t elements, int64_t element = sizeof(float)) {
    float* const data = allocate(size_t(elements * element));
    watch(name, data, elements, element);
    return data;
  }
  template <class Strided>
  Strided strided(const char* name, int64_t steps) {
    float* const data = make(name, s_.batch * steps * s_.dim, element_);
    return {.data = data, .batch = steps * s_.dim, .step = s_.dim, .dim = 1};
  }
  template <class Strided>
  void each_stream(Strided (&x)[2], const char* name) {
    for (int m = 0; m < o_.streams; ++m) x[m] = strided<Strided>(name, s_.length);
  }
  void* map_data(const char* name) { return make(name, elements_of_map(), element_); }
  InMap map(const char* name) {
    const int64_t row = s_.ngroups * s_.dstate;
    return {.data = map_data(name), .batch = s_.steps * row, .step = row, .group = s_.dstate, .state = 1};
  }
};

}  // namespace

// Runs a pass and tells, as cmimtl_cuda_scan_traffic does, what it moved; `asked` are all bytes that threads read.
extern "C" __attribute__((visibility("default"))) const char* count_scan(bool backward, int64_t batch, int64_t length,
                                                                         int64_t dim, int64_t dstate, int64_t ngroups,
                                                                         int64_t checkpoint_every,
                                                                         ScanOptions options) {
  static std::string text;
  Call call(scan_sizes(options.streams, batch, length, dim, dstate, ngroups, checkpoint_every), options);
  backward ? call.backward() : call.forward();
  text = "tensor,read,written,read_by_blocks,written_by_blocks,asked\n";
  for (const Tensor& x : tensors) {
    text += x.name;
    for (const int64_t bytes :
         {x.reads.by_launches, x.writes.by_launches, x.reads.by_blocks, x.writes.by_blocks, x.reads.all})
      text += ',' + std::to_string(bytes);
    text += '\n';
  }
  return text.c_str();
}

// What the compiler's instrumentation calls.
extern "C" {
#define ACCESSES(bytes)                                                  \
  void __tsan_read##bytes(void* p) { count(p, bytes, false); }           \
  void __tsan_write##bytes(void* p) { count(p, bytes, true); }           \
  void __tsan_unaligned_read##bytes(void* p) { count(p, bytes, false); } \
  void __tsan_unaligned_write##bytes(void* p) { count(p, bytes, true); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) { count(p, bytes, false); }
void __tsan_write_range(void* p, size_t bytes) { count(p, bytes, true); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
