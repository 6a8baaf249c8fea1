// From tensors to the plain structs of selective_scan.h, and from the schemas of cmimtl_kernels/registration.py to
// functions. Shared by the CPU and CUDA bindings. PyTorch's stable ABI only: no ATen, no Python.h.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "selective_scan.h"

namespace cmimtl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

inline DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, "cmimtl: u must be float32, float64, bfloat16 or float16");
  }
}

inline ScalarType accumulation_of(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline In in(const Tensor& x) { return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)}; }
inline In in(const Optional& x) { return x ? in(*x) : In{}; }
inline Out out(const Tensor& x) { return {x.mutable_data_ptr(), x.stride(0), x.stride(1), x.stride(2)}; }
inline Out out(const Optional& x) { return x ? out(*x) : Out{}; }
inline InMap in_map(const Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

// Small operands are read without strides; a copy is made only where they are not contiguous.
inline Tensor plain(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }
inline Optional plain(const Optional& x) { return x ? Optional(plain(*x)) : std::nullopt; }
inline const void* data(const Optional& x) { return x ? x->const_data_ptr() : nullptr; }

inline Tensor empty(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}
inline Tensor nothing(const Tensor& like, ScalarType dtype) { return empty(like, {0}, dtype); }
// A result of the shape of an argument that may be absent.
inline Tensor optional_like(const Optional& x, const Tensor& like, ScalarType dtype) {
  return x ? torch::stable::empty_like(*x) : nothing(like, dtype);
}

// The tensors of one call of either scan, as the schemas name them; streams is 1 (u, z) or 2 (v and t, z_v and z_t).
struct ScanInputs {
  int streams;
  Tensor u[2];
  Optional z[2];
  Tensor delta, A, B, C;
  Optional D, delta_bias, initial_state, lengths;
  bool delta_softplus, reverse;
  int64_t checkpoint_every;

  // Raises where a shape would let a kernel leave a tensor. The public functions have checked all with better messages;
  // this holds for whoever calls the op itself.
  void check(const char* op) const {
    const int64_t batch = u[0].size(0), length = u[0].size(1), dim = u[0].size(2), steps = streams * length;
    const auto shape = [&](const char* name, const Tensor& x, std::vector<int64_t> expected) {
      bool same = x.dim() == int64_t(expected.size());
      for (size_t i = 0; same && i < expected.size(); ++i) same = x.size(int64_t(i)) == expected[i];
      STD_TORCH_CHECK(same, op, ": ", name, " must have the shape that the op's schema states");
    };
    const auto optional = [&](const char* name, const Optional& x, std::vector<int64_t> expected) {
      if (x) shape(name, *x, expected);
    };
    STD_TORCH_CHECK(A.dim() == 2 && B.dim() == 4, op, ": A must have 2 dimensions and B 4, got ", A.dim(), " and ",
                    B.dim());
    const int64_t dstate = A.size(1), ngroups = B.size(2);
    STD_TORCH_CHECK(ngroups > 0 && dim % ngroups == 0, op, ": B must have groups that divide dim=", dim, ", got ",
                    ngroups);
    for (int m = 0; m < streams; ++m) {
      shape("every stream", u[m], {batch, length, dim});
      optional("every gate", z[m], {batch, length, dim});
    }
    shape("delta", delta, {batch, steps, dim});
    shape("A", A, {dim, dstate});
    shape("B", B, {batch, steps, ngroups, dstate});
    shape("C", C, {batch, steps, ngroups, dstate});
    optional("D", D, {dim});
    optional("delta_bias", delta_bias, {dim});
    optional("initial_state", initial_state, {batch, dim, dstate});
    optional("lengths", lengths, {batch});
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
    p.size.ngroups = B.size(2);
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

}  // namespace cmimtl
