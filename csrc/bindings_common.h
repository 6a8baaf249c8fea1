// What the CPU and the CUDA bindings share. It turns tensors into the plain structs of
// selective_scan.h, and has a function for each schema of cmimtl_kernels/registration.py, which
// allocates the results and calls the kernels. It uses only PyTorch's stable ABI: no ATen, no
// Python.h.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <utility>
#include <vector>

#include "bindings_checks.h"
#include "selective_scan.h"

namespace cmimtl {

// Of a stream, whose dtype has been checked.
inline DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      return DType::kFloat32;
  }
}

inline ScalarType accumulation_of(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline In in(const Tensor& x) {
  return {.data = x.const_data_ptr(), .batch = x.stride(0), .step = x.stride(1), .dim = x.stride(2)};
}
inline In in(const Optional& x) { return x ? in(*x) : In{}; }
inline Out out(const Tensor& x) {
  return {.data = x.mutable_data_ptr(), .batch = x.stride(0), .step = x.stride(1), .dim = x.stride(2)};
}
inline Out out(const Optional& x) { return x ? out(*x) : Out{}; }
// B or C is (batch, steps, ngroups, dstate), or (batch, steps, dstate) where all channels are one
// group.
inline int64_t groups_of(const Tensor& x) { return x.dim() == 3 ? 1 : x.size(2); }
inline InMap in_map(const Tensor& x) {
  const bool one = x.dim() == 3;
  return {.data = x.const_data_ptr(),
          .batch = x.stride(0),
          .step = x.stride(1),
          .group = one ? 0 : x.stride(2),
          .state = x.stride(one ? 2 : 3)};
}

// Kernels read small operands without strides, so those that are not contiguous are copied.
inline Tensor plain(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }
inline Optional plain(const Optional& x) { return x ? Optional(plain(*x)) : std::nullopt; }
inline const void* data(const Optional& x) { return x ? x->const_data_ptr() : nullptr; }

inline Tensor empty(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}
inline Tensor nothing(const Tensor& like, ScalarType dtype) { return empty(like, {0}, dtype); }
// A result that has the shape of an argument, and is empty where that argument is absent.
inline Tensor optional_like(const Optional& x, const Tensor& like, ScalarType dtype) {
  return x ? torch::stable::empty_like(*x) : nothing(like, dtype);
}

// The tensors of one call of either scan, as the schemas name them. streams is 1 (u, z) or 2 (v and
// t, z_v and z_t).
struct ScanInputs {
  int streams;
  Tensor u[2];
  Optional z[2];
  Tensor delta, A, B, C;
  Optional D, delta_bias, initial_state, lengths;
  bool delta_softplus, reverse;
  int64_t checkpoint_every;

  Arguments check(const char* op) const {
    constexpr const char *kStreams[2][2] = {{"u", ""}, {"v", "t"}}, *kGates[2][2] = {{"z", ""}, {"z_v", "z_t"}};
    const auto &names = kStreams[streams - 1], &gates = kGates[streams - 1];
    const Arguments arguments(op, names[0], u[0]);
    const ScalarType dtype = u[0].scalar_type(), acc = accumulation_of(u[0]);
    const int64_t batch = u[0].size(0), length = u[0].size(1), dim = u[0].size(2), steps = streams * length;
    for (int m = 0; m < streams; ++m) {
      if (m) arguments.require(names[m], u[m], {batch, length, dim}, dtype);
      arguments.require(gates[m], z[m], {batch, length, dim}, dtype);
    }
    CMIMTL_CHECK(streams == 1 || z[0].has_value() == z[1].has_value(), op, ": ", gates[z[0] ? 1 : 0],
                 " must be given together with ", gates[z[0] ? 0 : 1], ", got None");
    arguments.require("delta", delta, {batch, steps, dim}, dtype);
    arguments.require_tensor("A", A, acc);
    CMIMTL_CHECK(A.dim() == 2 && A.size(0) == dim && A.size(1) > 0, op, ": A must have shape (dim=", dim,
                 ", dstate >= 1), got ", text_of(A.sizes()));
    const int64_t dstate = A.size(1);
    arguments.require_tensor("B", B, dtype);
    CMIMTL_CHECK(B.dim() == 3 || (B.dim() == 4 && B.size(2) > 0 && dim % B.size(2) == 0), op,
                 ": B must have shape (batch, steps, dstate) or (batch, steps, ngroups, dstate) with ngroups a divisor "
                 "of dim=",
                 dim, ", got ", text_of(B.sizes()));
    const int64_t ngroups = groups_of(B);
    for (const auto& [name, x] : {std::pair("B", &B), std::pair("C", &C)}) {
      CMIMTL_CHECK(x->defined(), op, ": ", name, " must be a tensor, got None");
      if (x->dim() == 3 && ngroups == 1) {
        arguments.require(name, *x, {batch, steps, dstate}, dtype);
      } else {
        arguments.require(name, *x, {batch, steps, ngroups, dstate}, dtype);
      }
    }
    arguments.require("D", D, {dim}, acc);
    arguments.require("delta_bias", delta_bias, {dim}, acc);
    arguments.require("initial_state", initial_state, {batch, dim, dstate}, acc);
    arguments.require("lengths", lengths, {batch}, ScalarType::Long);
    return arguments;
  }

  // The struct without outputs; the tensors must outlive it.
  ScanForward params() {
    A = plain(A);
    D = plain(D), delta_bias = plain(delta_bias), initial_state = plain(initial_state), lengths = plain(lengths);
    ScanForward p{};
    p.size.batch = u[0].size(0);
    p.size.length = u[0].size(1);
    p.size.steps = delta.size(1);
    p.size.dim = u[0].size(2);
    p.size.dstate = A.size(1);
    p.size.ngroups = groups_of(B);
    p.size.checkpoint_every = checkpoint_every;
    p.size.nchunks = checkpoint_every ? (p.size.steps + checkpoint_every - 1) / checkpoint_every : 0;
    p.dtype = dtype_of(u[0]);
    p.streams = streams;
    p.delta_softplus = delta_softplus;
    p.reverse = reverse;
    for (int m = 0; m < streams; ++m) p.u[m] = in(u[m]), p.z[m] = in(z[m]);
    p.delta = in(delta);
    p.A = A.const_data_ptr();
    p.B = in_map(B), p.C = in_map(C);
    p.D = data(D), p.delta_bias = data(delta_bias), p.initial_state = data(initial_state);
    p.lengths = static_cast<const int64_t*>(data(lengths));
    return p;
  }
};

// Results of the two passes, as the schemas order them.
struct ScanOutputs {
  Tensor out[2], last_state, checkpoints;
};
struct ScanGradients {
  Tensor du[2], ddelta, dA, dB, dC, dD, dz[2], ddelta_bias, dinitial_state;
};

// Keeps alive the contiguous copies that the struct points to.
struct ConvInputs {
  Tensor x, weight;
  Optional bias, lengths;

  Arguments check(const char* op) const {
    const Arguments arguments(op, "x", x);
    const int64_t dim = x.size(2);
    const ScalarType acc = accumulation_of(x);
    arguments.require_tensor("weight", weight, acc);
    CMIMTL_CHECK(weight.dim() == 2 && weight.size(0) == dim && weight.size(1) > 0, op,
                 ": weight must have shape (dim=", dim, ", width >= 1), got ", text_of(weight.sizes()));
    arguments.require("bias", bias, {dim}, acc);
    arguments.require("lengths", lengths, {x.size(0)}, ScalarType::Long);
    return arguments;
  }

  // The struct without outputs, of arguments that have been checked.
  ConvForward params(bool silu, bool reverse) {
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

// The ops of one device, with the arguments of the schemas. Kernels provides these static
// functions; `like` is a tensor of the call, and the structs are complete:
//
//     check_scan(op, const ScanForward&, bool backward)   raises where its kernels of this pass
//     check_conv(op, const ConvForward&, bool backward)   cannot run these sizes, strides or dtype;
//                                                         called before results are allocated
//     scan_forward(const ScanForward&, like)              run a kernel
//     scan_backward(const ScanBackward&, like)
//     conv_forward(const ConvForward&, like)
//     conv_backward(const ConvBackward&, like)
//     result(Tensor)                                      prepares the memory of a new tensor of
//                                                         the size of a stream
template <class Kernels>
struct Ops {
  static Tensor result_like(const Tensor& x) { return Kernels::result(torch::stable::empty_like(x)); }

  static ScanOutputs forward(const char* op, ScanInputs x) {
    x.check(op);
    ScanForward p = x.params();
    Kernels::check_scan(op, p, false);
    const ScalarType acc = accumulation_of(x.u[0]);
    const auto& s = p.size;
    ScanOutputs r;
    for (int m = 0; m < x.streams; ++m) p.out[m] = out(r.out[m] = result_like(x.u[m]));
    r.last_state = empty(x.u[0], {s.batch, s.dim, s.dstate}, acc);
    p.last_state = r.last_state.mutable_data_ptr();
    if (s.checkpoint_every) {
      r.checkpoints = Kernels::result(empty(x.u[0], {s.batch, s.nchunks, s.dim, s.dstate}, acc));
      p.checkpoints = r.checkpoints.mutable_data_ptr();
    } else {
      r.checkpoints = nothing(x.u[0], acc);
    }
    Kernels::scan_forward(p, x.u[0]);
    return r;
  }

  static ScanGradients backward(const char* op, const Tensor* dout, const Optional& dlast_state, ScanInputs x,
                                const Tensor& checkpoints) {
    const Arguments arguments = x.check(op);
    CMIMTL_CHECK(x.checkpoint_every > 0, op, ": checkpoint_every must be positive in the backward pass, got ",
                 x.checkpoint_every);
    ScanBackward q{};
    q.forward = x.params();
    ScanForward& p = q.forward;
    Kernels::check_scan(op, p, true);
    const auto& s = p.size;
    const ScalarType acc = accumulation_of(x.u[0]), dtype = x.u[0].scalar_type();
    arguments.require("checkpoints", checkpoints, {s.batch, s.nchunks, s.dim, s.dstate}, acc);
    arguments.require("dlast_state", dlast_state, {s.batch, s.dim, s.dstate}, acc);
    for (int m = 0; m < x.streams; ++m) {
      const char* name = x.streams == 1 ? "dout" : m ? "dout_t" : "dout_v";
      arguments.require(name, dout[m], {s.batch, s.length, s.dim}, dtype);
    }
    const Tensor kept = plain(checkpoints);
    p.checkpoints = const_cast<void*>(kept.const_data_ptr());
    const Optional dlast = plain(dlast_state);
    q.dlast_state = data(dlast);

    ScanGradients r;
    for (int m = 0; m < x.streams; ++m) {
      q.dout[m] = in(dout[m]);
      q.du[m] = out(r.du[m] = result_like(x.u[m]));
      r.dz[m] = x.z[m] ? result_like(*x.z[m]) : nothing(x.u[m], dtype);
      if (x.z[m]) q.dz[m] = out(r.dz[m]);
    }
    q.ddelta = out(r.ddelta = result_like(x.delta));
    r.dA = empty(x.u[0], {s.dim, s.dstate}, acc);
    const auto map_like = [&](const Tensor& of) {
      if (of.dim() == 3) return empty(x.u[0], {s.batch, s.steps, s.dstate}, dtype);
      return empty(x.u[0], {s.batch, s.steps, s.ngroups, s.dstate}, dtype);
    };
    r.dB = map_like(x.B), r.dC = map_like(x.C);
    r.dD = optional_like(x.D, x.u[0], acc);
    r.ddelta_bias = optional_like(x.delta_bias, x.u[0], acc);
    r.dinitial_state = optional_like(x.initial_state, x.u[0], acc);
    q.dA = r.dA.mutable_data_ptr();
    q.dB = r.dB.mutable_data_ptr(), q.dC = r.dC.mutable_data_ptr();
    if (x.D) q.dD = r.dD.mutable_data_ptr();
    if (x.delta_bias) q.ddelta_bias = r.ddelta_bias.mutable_data_ptr();
    if (x.initial_state) q.dinitial_state = r.dinitial_state.mutable_data_ptr();
    Kernels::scan_backward(q, x.u[0]);
    return r;
  }

  static std::tuple<Tensor, Tensor, Tensor> selective_scan_fwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C,
                                                               Optional D, Optional z, Optional delta_bias,
                                                               Optional initial_state, Optional lengths,
                                                               bool delta_softplus, bool reverse,
                                                               int64_t checkpoint_every) {
    ScanOutputs r = forward("selective_scan_fwd", {.streams = 1,
                                                   .u = {u},
                                                   .z = {z},
                                                   .delta = delta,
                                                   .A = A,
                                                   .B = B,
                                                   .C = C,
                                                   .D = D,
                                                   .delta_bias = delta_bias,
                                                   .initial_state = initial_state,
                                                   .lengths = lengths,
                                                   .delta_softplus = delta_softplus,
                                                   .reverse = reverse,
                                                   .checkpoint_every = checkpoint_every});
    return {r.out[0], r.last_state, r.checkpoints};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> selective_scan_bwd(
      Tensor dout, Optional dlast_state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional z,
      Optional delta_bias, Optional initial_state, Optional lengths, Tensor checkpoints, bool delta_softplus,
      bool reverse, int64_t checkpoint_every) {
    ScanGradients r = backward("selective_scan_bwd", &dout, dlast_state,
                               {.streams = 1,
                                .u = {u},
                                .z = {z},
                                .delta = delta,
                                .A = A,
                                .B = B,
                                .C = C,
                                .D = D,
                                .delta_bias = delta_bias,
                                .initial_state = initial_state,
                                .lengths = lengths,
                                .delta_softplus = delta_softplus,
                                .reverse = reverse,
                                .checkpoint_every = checkpoint_every},
                               checkpoints);
    return {r.du[0], r.ddelta, r.dA, r.dB, r.dC, r.dD, r.dz[0], r.ddelta_bias, r.dinitial_state};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> cross_selective_scan_fwd(
      Tensor v, Tensor t, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional z_v, Optional z_t,
      Optional delta_bias, Optional initial_state, Optional lengths, bool delta_softplus, bool reverse,
      int64_t checkpoint_every) {
    ScanOutputs r = forward("cross_selective_scan_fwd", {.streams = 2,
                                                         .u = {v, t},
                                                         .z = {z_v, z_t},
                                                         .delta = delta,
                                                         .A = A,
                                                         .B = B,
                                                         .C = C,
                                                         .D = D,
                                                         .delta_bias = delta_bias,
                                                         .initial_state = initial_state,
                                                         .lengths = lengths,
                                                         .delta_softplus = delta_softplus,
                                                         .reverse = reverse,
                                                         .checkpoint_every = checkpoint_every});
    return {r.out[0], r.out[1], r.last_state, r.checkpoints};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
  cross_selective_scan_bwd(Tensor dout_v, Tensor dout_t, Optional dlast_state, Tensor v, Tensor t, Tensor delta,
                           Tensor A, Tensor B, Tensor C, Optional D, Optional z_v, Optional z_t, Optional delta_bias,
                           Optional initial_state, Optional lengths, Tensor checkpoints, bool delta_softplus,
                           bool reverse, int64_t checkpoint_every) {
    const Tensor dout[2] = {dout_v, dout_t};
    ScanGradients r = backward("cross_selective_scan_bwd", dout, dlast_state,
                               {.streams = 2,
                                .u = {v, t},
                                .z = {z_v, z_t},
                                .delta = delta,
                                .A = A,
                                .B = B,
                                .C = C,
                                .D = D,
                                .delta_bias = delta_bias,
                                .initial_state = initial_state,
                                .lengths = lengths,
                                .delta_softplus = delta_softplus,
                                .reverse = reverse,
                                .checkpoint_every = checkpoint_every},
                               checkpoints);
    return {r.du[0], r.du[1], r.ddelta, r.dA, r.dB, r.dC, r.dD, r.dz[0], r.dz[1], r.ddelta_bias, r.dinitial_state};
  }

  static Tensor causal_conv1d_fwd(Tensor x, Tensor weight, Optional bias, Optional lengths, bool silu, bool reverse) {
    ConvInputs inputs{.x = x, .weight = weight, .bias = bias, .lengths = lengths};
    inputs.check("causal_conv1d_fwd");
    ConvForward p = inputs.params(silu, reverse);
    Kernels::check_conv("causal_conv1d_fwd", p, false);
    Tensor y = result_like(x);
    p.out = out(y);
    Kernels::conv_forward(p, x);
    return y;
  }

  static std::tuple<Tensor, Tensor, Tensor> causal_conv1d_bwd(Tensor dout, Tensor x, Tensor weight, Optional bias,
                                                              Optional lengths, bool silu, bool reverse) {
    ConvInputs inputs{.x = x, .weight = weight, .bias = bias, .lengths = lengths};
    inputs.check("causal_conv1d_bwd").require("dout", dout, {x.size(0), x.size(1), x.size(2)}, x.scalar_type());
    ConvBackward q{};
    q.forward = inputs.params(silu, reverse);
    const ConvForward& p = q.forward;
    Kernels::check_conv("causal_conv1d_bwd", p, true);
    const ScalarType acc = accumulation_of(x);
    Tensor dx = result_like(x), dweight = empty(x, {p.dim, p.width}, acc), dbias = optional_like(bias, x, acc);
    q.dout = in(dout);
    q.dx = out(dx);
    q.dweight = dweight.mutable_data_ptr();
    if (bias) q.dbias = dbias.mutable_data_ptr();
    Kernels::conv_backward(q, x);
    return {dx, dweight, dbias};
  }

  static void implement(torch::stable::detail::StableLibrary& m) {
    m.impl("selective_scan_fwd", TORCH_BOX(&Ops::selective_scan_fwd));
    m.impl("selective_scan_bwd", TORCH_BOX(&Ops::selective_scan_bwd));
    m.impl("cross_selective_scan_fwd", TORCH_BOX(&Ops::cross_selective_scan_fwd));
    m.impl("cross_selective_scan_bwd", TORCH_BOX(&Ops::cross_selective_scan_bwd));
    m.impl("causal_conv1d_fwd", TORCH_BOX(&Ops::causal_conv1d_fwd));
    m.impl("causal_conv1d_bwd", TORCH_BOX(&Ops::causal_conv1d_bwd));
  }
};

}  // namespace cmimtl
