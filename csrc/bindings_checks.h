// Checks of what an op was given. The ops are public and take any tensors, and between the passes a
// caller can change what autograd saved. So the dtype, device, shape and memory of each tensor are
// checked in both passes, or a kernel would read and write outside of it. The functions of
// cmimtl_kernels/ops.py check the same and more before.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace cmimtl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// As STD_TORCH_CHECK, without the name of a function and a file before the message.
#define CMIMTL_CHECK(condition, ...) \
  do {                               \
    if (!(condition)) [[unlikely]]   \
      ::cmimtl::refuse(__VA_ARGS__); \
  } while (false)

inline const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Bool:
      return "bool";
    default:
      return torch::headeronly::toString(dtype);
  }
}

// A shape as Python writes it.
template <class Sizes>
std::string text_of(const Sizes& sizes) {
  std::ostringstream text;
  text << "(";
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << *(sizes.begin() + i);
  text << (sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

// The tensors of one call. All are on the device of the first; the message of a failed check names
// the op and the argument.
class Arguments {
 public:
  // The first stream, whose shape and dtype the others follow.
  Arguments(const char* op, const char* name, const Tensor& first) : op_(op) {
    CMIMTL_CHECK(first.defined(), op, ": ", name, " must be a tensor, got None");
    const ScalarType dtype = first.scalar_type();
    CMIMTL_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
                     dtype == ScalarType::Half,
                 op, ": ", name, " must be float32, bfloat16, float16 or float64, got ", name_of(dtype));
    CMIMTL_CHECK(first.dim() == 3, op, ": ", name, " must have shape (batch, length, dim), got ",
                 text_of(first.sizes()));
    type_ = device_type(first), index_ = first.get_device_index();
    require_memory(name, first);
  }

  void require(const char* name, const Tensor& x, std::initializer_list<int64_t> shape, ScalarType dtype) const {
    require_tensor(name, x, dtype);
    const auto sizes = x.sizes();
    bool same = sizes.size() == shape.size();
    for (size_t i = 0; same && i < shape.size(); ++i) same = sizes[i] == shape.begin()[i];
    CMIMTL_CHECK(same, op_, ": ", name, " must have shape ", text_of(shape), ", got ", text_of(sizes));
  }
  void require(const char* name, const Optional& x, std::initializer_list<int64_t> shape, ScalarType dtype) const {
    if (x) require(name, *x, shape, dtype);
  }

  // A tensor whose shape the caller checks.
  void require_tensor(const char* name, const Tensor& x, ScalarType dtype) const {
    CMIMTL_CHECK(x.defined(), op_, ": ", name, " must be a tensor, got None");
    CMIMTL_CHECK(x.scalar_type() == dtype, op_, ": ", name, " must be ", name_of(dtype), ", got ",
                 name_of(x.scalar_type()));
    CMIMTL_CHECK(device_type(x) == type_ && x.get_device_index() == index_, op_, ": ", name,
                 " must be on the device of the first argument, got another");
    require_memory(name, x);
  }

 private:
  static int32_t device_type(const Tensor& x) {
    int32_t type;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &type));
    return type;
  }

  // Storage can be freed or cut under a tensor: FSDP frees that of parameters between the passes.
  void require_memory(const char* name, const Tensor& x) const {
    const auto sizes = x.sizes(), strides = x.strides();
    int64_t elements = x.storage_offset() + 1;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] == 0) return;
      elements += (sizes[i] - 1) * strides[i];
    }
    const int64_t bytes_needed = elements * int64_t(x.element_size());
    int64_t bytes;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(x.get(), &bytes));
    CMIMTL_CHECK(bytes_needed <= bytes, op_, ": ", name, " must lie in its memory, got storage of ", bytes,
                 " bytes, which was freed or made smaller");
  }

  const char* op_;
  int32_t type_;
  int32_t index_;
};

}  // namespace cmimtl
