// The ops on CUDA tensors: they check what the kernels can run, allocate workspaces, and find the
// stream.
#include "bindings_common.h"
#include "conv.h"
#include "kernels.h"
#include "stream.h"

// Tests register the same kernels, run on a CPU, under namespaces of their own.
#ifndef CMIMTL_CUDA_NAMESPACE
#define CMIMTL_CUDA_NAMESPACE cmimtl
#define CMIMTL_CUDA_KEY CUDA
#define CMIMTL_CUDA_LIBRARY cmimtl_cuda
#endif

namespace cmimtl::cuda {
namespace {

// The kernels hold steps, channels and strides of a step in 32 bits.
constexpr int64_t kBelow = int64_t(1) << 31;

void check_dtype(const char* op, const char* name, DType dtype) {
  CMIMTL_CHECK(dtype != DType::kFloat64, op, ": ", name, " must be float32, bfloat16 or float16, got float64");
}

void check_size(const char* op, const char* name, int64_t size) {
  CMIMTL_CHECK(size < kBelow, op, ": ", name, " must be below 2^31, got ", size);
}

void check_blocks(const char* op, int64_t blocks) {
  CMIMTL_CHECK(blocks < kBelow, op, ": the launch must have fewer than 2^31 blocks of ", kThreads, " threads, got ",
               blocks, "; split the batch");
}

template <class Strided>
void check_strides(const char* op, const char* name, const Strided& x, int64_t step, int64_t last) {
  CMIMTL_CHECK(!x.data || (step < kBelow && last < kBelow), op, ": ", name,
               " must have strides below 2^31 along steps and the last axis, got ", step, " and ", last,
               "; call contiguous() on it");
}
void check_strides(const char* op, const char* name, const In& x) { check_strides(op, name, x, x.step, x.dim); }
void check_strides(const char* op, const char* name, const InMap& x) { check_strides(op, name, x, x.step, x.state); }

struct CudaKernels {
  static Tensor result(Tensor x) { return x; }

  static void check_scan(const char* op, const ScanForward& p, bool backward) {
    const auto& s = p.size;
    check_dtype(op, "u", p.dtype);
    CMIMTL_CHECK(s.dstate > 0 && s.dstate <= kMostStates, op, ": A must have 1 to ", kMostStates, " states, got ",
                 s.dstate);
    CMIMTL_CHECK(s.checkpoint_every == 0 || s.checkpoint_every == kChunk, op, ": checkpoint_every must be 0 or ",
                 kChunk, ", got ", s.checkpoint_every);
    check_size(op, "steps", s.steps);
    check_size(op, "dim", s.dim);
    // The forward pass decides on pairs of channels when its results have been allocated; pairs
    // never make more blocks.
    check_blocks(op, (backward ? plan_backward(s) : plan_forward(s)).blocks(s));
    for (int m = 0; m < p.streams; ++m) {
      check_strides(op, "u", p.u[m]);
      check_strides(op, "z", p.z[m]);
    }
    check_strides(op, "delta", p.delta);
    check_strides(op, "B", p.B);
    check_strides(op, "C", p.C);
  }

  static void check_conv(const char* op, const ConvForward& p, bool backward) {
    check_dtype(op, "x", p.dtype);
    CMIMTL_CHECK(p.width > 0 && p.width <= kMostTaps, op, ": weight must have 1 to ", kMostTaps, " taps, got ",
                 p.width);
    check_size(op, "length", p.length);
    check_size(op, "dim", p.dim);
    check_blocks(op, conv_blocks(p, backward ? kConvBackwardSteps : kConvForwardSteps));
    check_strides(op, "x", p.x);
  }

  // On return the memory goes back to PyTorch's allocator, which gives it out again only on this
  // stream, so only after the kernels.
  static Tensor workspace(const Tensor& like, int64_t elements) { return empty(like, {elements}, ScalarType::Float); }
  static float* floats(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

  static void scan_forward(const ScanForward& p, const Tensor& like) {
    const CurrentStream current(like);
    cuda::scan_forward(p, floats(workspace(like, forward_elements(p.size))), current.stream);
  }
  static void scan_backward(const ScanBackward& q, const Tensor& like) {
    CMIMTL_CHECK(reinterpret_cast<uintptr_t>(q.forward.checkpoints) % 16 == 0,
                 "the backward scan: checkpoints must be those of the forward pass, got a slice of them");
    for (int m = 0; m < q.forward.streams; ++m) check_strides("the backward scan", "dout", q.dout[m]);
    const CurrentStream current(like);
    cuda::scan_backward(q, floats(workspace(like, backward_elements(q.forward.size))), current.stream);
  }
  static void conv_forward(const ConvForward& p, const Tensor& like) {
    const CurrentStream current(like);
    cuda::conv_forward(p, current.stream);
  }
  static void conv_backward(const ConvBackward& q, const Tensor& like) {
    check_strides("causal_conv1d_bwd", "dout", q.dout);
    const CurrentStream current(like);
    cuda::conv_backward(q, floats(workspace(like, conv_backward_elements(q.forward))), current.stream);
  }
};

int64_t checkpoint_every() { return kChunk; }
int64_t most_states_of(int64_t shared_bytes) { return most_states(shared_bytes); }

}  // namespace
}  // namespace cmimtl::cuda

STABLE_TORCH_LIBRARY_IMPL(CMIMTL_CUDA_NAMESPACE, CMIMTL_CUDA_KEY, m) {
  cmimtl::Ops<cmimtl::cuda::CudaKernels>::implement(m);
}

// What the library tells of itself.
STABLE_TORCH_LIBRARY(CMIMTL_CUDA_LIBRARY, m) {
  // The steps between two states that the forward pass keeps.
  m.def("checkpoint_every() -> int");
  // The largest dstate, by the shared memory that a block gets.
  m.def("most_states(int shared_bytes) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(CMIMTL_CUDA_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("checkpoint_every", TORCH_BOX(&cmimtl::cuda::checkpoint_every));
  m.impl("most_states", TORCH_BOX(&cmimtl::cuda::most_states_of));
}
