// What a scan kernel is given: sizes, options and strided pointers, for the selective scan (one stream, u) and the
// interleaved cross scan (two streams, v and t; x_{2l} = v_l * t_l, x_{2l+1} = v_l + t_l is formed in registers).
// One page for the CPU and CUDA kernels alike; no torch header. The equations are in cmimtl_kernels/reference.py.
#pragma once

#include <cstdint>

namespace cmimtl {

enum class DType : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

// A tensor over (batch, step, channel); strides in elements, any sign of layout, 0 where expanded.
struct In {
  const void* data = nullptr;  // null: the tensor is absent
  int64_t batch = 0, step = 0, dim = 0;
};
struct Out {
  void* data = nullptr;
  int64_t batch = 0, step = 0, dim = 0;
};

// B or C: (batch, step, group, state).
struct InMap {
  const void* data = nullptr;
  int64_t batch = 0, step = 0, group = 0, state = 0;
};

struct ScanSizes {
  int64_t batch;
  int64_t length;   // steps of one stream
  int64_t steps;    // steps of the recurrence: length, or 2 * length for two streams
  int64_t dim;      // channels
  int64_t dstate;   // states of one channel
  int64_t ngroups;  // divides dim; channels [g * dim / ngroups, (g + 1) * dim / ngroups) share row g of B and C
  int64_t checkpoint_every;  // recurrence steps between two checkpoints; 0: none are kept
  int64_t nchunks;           // ceil(steps / checkpoint_every); 0 without checkpoints
};

// acc: float, or double where the inputs are double. Contiguous unless strides are given.
struct ScanForward {
  ScanSizes size;
  DType dtype;  // of u, delta, B, C, z, out
  int streams;  // 1: u = stream 0.  2: v = stream 0, t = stream 1
  bool delta_softplus, reverse;

  In u[2];                    // (batch, length, dim)
  In delta;                   // (batch, steps, dim)
  const void* A;              // acc (dim, dstate)
  InMap B, C;                 // (batch, steps, ngroups, dstate)
  const void* D;              // acc (dim,) or null
  In z[2];                    // (batch, length, dim) or null; two streams share the gate silu(z[0] * z[1])
  const void* delta_bias;     // acc (dim,) or null
  const void* initial_state;  // acc (batch, dim, dstate) or null: zeros
  const int64_t* lengths;     // (batch,) valid steps of a stream, 0 <= lengths[b] <= length, or null: all

  Out out[2];         // (batch, length, dim); 0 at invalid steps
  void* last_state;   // acc (batch, dim, dstate)
  void* checkpoints;  // acc (batch, nchunks, dim, dstate) or null: the state before processed step k * checkpoint_every
};

struct ScanBackward {
  ScanForward
      forward;  // the forward's inputs and checkpoints; out is written where out[0].data is not null, last_state is not

  In dout[2];               // (batch, length, dim)
  const void* dlast_state;  // acc (batch, dim, dstate) or null: zeros

  Out du[2];             // (batch, length, dim); all gradients are 0 at invalid steps
  Out ddelta;            // (batch, steps, dim)
  void* dA;              // acc (dim, dstate)
  void *dB, *dC;         // dtype (batch, steps, ngroups, dstate)
  void* dD;              // acc (dim,) or null
  Out dz[2];             // (batch, length, dim) or null
  void* ddelta_bias;     // acc (dim,) or null
  void* dinitial_state;  // acc (batch, dim, dstate) or null
};

// Depthwise causal convolution: out[t] = act(bias + sum_k weight[k] * x[t - width + 1 + k]), mirrored in time with `reverse`.
struct ConvForward {
  int64_t batch, length, dim, width;
  DType dtype;  // of x, out
  bool silu, reverse;
  In x;                    // (batch, length, dim)
  const void* weight;      // acc (dim, width)
  const void* bias;        // acc (dim,) or null
  const int64_t* lengths;  // (batch,) or null
  Out out;                 // (batch, length, dim); 0 at invalid steps
};

struct ConvBackward {
  ConvForward forward;  // out unused
  In dout;              // (batch, length, dim)
  Out dx;               // (batch, length, dim)
  void* dweight;        // acc (dim, width)
  void* dbias;          // acc (dim,) or null
};

}  // namespace cmimtl
