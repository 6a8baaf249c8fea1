// The arguments of the scan kernels: sizes, options and strided pointers. The selective scan has
// one stream, u. The interleaved cross scan has two streams, v and t, and forms its inputs in
// registers:
//
//     x_{2l}   = v_l * t_l
//     x_{2l+1} = v_l + t_l
//
// The CPU and the CUDA kernels share this file, and it includes no torch header. The equations are
// in cmimtl_kernels/reference.py.
#pragma once

#include <cstdint>

namespace cmimtl {

enum class DType : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

// A tensor over (batch, step, channel), in any layout. Strides are in elements; a stride of an
// expanded dimension is 0.
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
  int64_t length;  // steps of one stream
  int64_t steps;   // steps of the recurrence: length, or 2 * length for two streams
  int64_t dim;     // channels
  int64_t dstate;  // states of one channel
  // It divides dim; the dim / ngroups channels of a group share its row of B and C.
  int64_t ngroups;
  int64_t checkpoint_every;  // recurrence steps between two checkpoints; 0: none are kept
  int64_t nchunks;           // ceil(steps / checkpoint_every); 0 without checkpoints
};

// acc is float, or double where the inputs are double. Tensors without strides are contiguous.
struct ScanForward {
  ScanSizes size;
  DType dtype;  // the dtype of u, delta, B, C, z and out
  int streams;  // 1: stream 0 is u.  2: stream 0 is v, stream 1 is t
  bool delta_softplus, reverse;

  In u[2];        // (batch, length, dim)
  In delta;       // (batch, steps, dim)
  const void* A;  // acc (dim, dstate)
  InMap B, C;     // (batch, steps, ngroups, dstate)
  const void* D;  // acc (dim,) or null
  // (batch, length, dim) or null; two streams share the gate silu(z[0] * z[1]).
  In z[2];
  const void* delta_bias;     // acc (dim,) or null
  const void* initial_state;  // acc (batch, dim, dstate) or null: zeros
  const int64_t* lengths;     // (batch,) valid steps of a stream, 0 to length, or null: all

  Out out[2];        // (batch, length, dim); 0 at invalid steps
  void* last_state;  // acc (batch, dim, dstate)
  // acc (batch, nchunks, dim, dstate) or null: the states before steps k * checkpoint_every.
  void* checkpoints;
};

struct ScanBackward {
  // The forward pass's inputs and checkpoints; out and last_state are null.
  ScanForward forward;

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

// The depthwise causal convolution, which is mirrored in time with `reverse`:
//
//     out[t] = act(bias + sum_k weight[k] * x[t - width + 1 + k])
struct ConvForward {
  int64_t batch, length, dim, width;
  DType dtype;  // the dtype of x and out
  bool silu, reverse;
  In x;                    // (batch, length, dim)
  const void* weight;      // acc (dim, width)
  const void* bias;        // acc (dim,) or null
  const int64_t* lengths;  // (batch,) or null
  Out out;                 // (batch, length, dim); 0 at invalid steps
};

struct ConvBackward {
  ConvForward forward;  // its out is not used
  In dout;              // (batch, length, dim)
  Out dx;               // (batch, length, dim)
  void* dweight;        // acc (dim, width)
  void* dbias;          // acc (dim,) or null
};

}  // namespace cmimtl
