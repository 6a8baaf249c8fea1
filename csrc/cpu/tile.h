// Vectors, and tiles of a stream: kChannels channels x up to kSteps steps in the accumulation type, stored
// [vector][step][lane], so that the steps of one vector of channels lie side by side in the first-level cache.
//
// All of csrc/cpu/*.h but kernels.h is compiled once per instruction set: the including .cpp sets CMIMTL_ISA (a namespace,
// so that the linker never merges code of two instruction sets) and CMIMTL_VECTOR_BYTES, after its target pragma.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "scan_math.h"
#include "selective_scan.h"

namespace cmimtl::cpu::CMIMTL_ISA {

constexpr int kChannels = 64;  // of one tile: a row of it is 4 cache lines of float32
constexpr int kSteps = 32;     // of one tile: 8 states' exponentials of a vector of channels take 8 KiB
constexpr int kBlockChannels = 2 * kChannels;  // of one task: halves the horizontal sums of dB and dC

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
struct Simd {
  static constexpr int kLanes = CMIMTL_VECTOR_BYTES / sizeof(T);
  static constexpr int kVectors = kChannels / kLanes;  // of one tile
  typedef T V __attribute__((vector_size(CMIMTL_VECTOR_BYTES), may_alias));
  typedef typename FloatTraits<T>::Int I __attribute__((vector_size(CMIMTL_VECTOR_BYTES), may_alias));
};

template <class T>
struct Simd<const T> {
  typedef const typename Simd<T>::V V;
};

// The vector that begins at p.
template <class T>
inline typename Simd<T>::V& at(T* p) {
  return *reinterpret_cast<typename Simd<T>::V*>(p);
}

// Storage types <-> accumulation type, branch-free so that loops over them vectorise.

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }
// Exponent and mantissa shifted into place, then rescaled: subnormals come out right by the subtraction of 1/2.
inline float widen(Float16 x) {
  const uint32_t word = uint32_t(x.bits) << 16, twice = word + word;
  const float normal = __builtin_bit_cast(float, (twice >> 4) + (0xE0u << 23)) * 0x1p-112f;
  const float subnormal = __builtin_bit_cast(float, (twice >> 17) | (126u << 23)) - 0.5f;
  const uint32_t magnitude =
      twice < (1u << 27) ? __builtin_bit_cast(uint32_t, subnormal) : __builtin_bit_cast(uint32_t, normal);
  return __builtin_bit_cast(float, (word & 0x80000000u) | magnitude);
}

inline void narrow(float x, float& out) { out = x; }
inline void narrow(double x, double& out) { out = x; }
// To nearest, ties to even; a NaN stays one.
inline void narrow(float x, BFloat16& out) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16;
  out.bits = uint16_t((bits & 0x7FFFFFFFu) > 0x7F800000u ? (bits >> 16) | 0x40u : rounded);
}
// The addition of a power of two, chosen by the exponent, rounds the mantissa to 10 bits.
inline void narrow(float x, Float16& out) {
  const uint32_t word = __builtin_bit_cast(uint32_t, x), twice = word + word;
  const float magnitude = __builtin_bit_cast(float, word & 0x7FFFFFFFu);
  float base = (magnitude * 0x1p+112f) * 0x1p-110f;  // infinite where float16 overflows
  uint32_t bias = twice & 0xFF000000u;
  bias = bias < 0x71000000u ? 0x71000000u : bias;
  base += __builtin_bit_cast(float, (bias >> 1) + 0x07800000u);
  const uint32_t bits = __builtin_bit_cast(uint32_t, base);
  const uint32_t finite = ((bits >> 13) & 0x7C00u) + (bits & 0x0FFFu);
  out.bits = uint16_t(((word & 0x80000000u) >> 16) | (twice > 0xFF000000u ? 0x7E00u : finite));
}

// Rows of a stream -> steps first, first + every, … of a tile, and back. Lanes past `channels` are 0.
template <class S, class T>
void load_typed(const S* rows, int64_t step, int64_t dim, int count, int channels, T* tile, int first, int every) {
  constexpr int kLanes = Simd<T>::kLanes;
  const int whole = dim == 1 ? channels / kLanes : 0;
  for (int j = 0; j < count; ++j) {
    const S* row = rows + j * step;
    T* out = tile + (first + j * every) * kLanes;
    for (int v = 0; v < whole; ++v, row += kLanes, out += kSteps * kLanes)
      for (int l = 0; l < kLanes; ++l) out[l] = widen(row[l]);
  }
  // What is left, or all of it where channels are not neighbours: along time, the other likely unit stride.
  for (int c = whole * kLanes; c < (channels + kLanes - 1) / kLanes * kLanes; ++c) {
    T* out = tile + (c / kLanes * kSteps + first) * kLanes + c % kLanes;
    const S* in = rows + c * dim;
    for (int j = 0; j < count; ++j) out[j * every * kLanes] = c < channels ? T(widen(in[j * step])) : T(0);
  }
}

template <class S, class T>
void store_typed(S* rows, int64_t step, int64_t dim, int count, int channels, const T* tile, int first, int every) {
  constexpr int kLanes = Simd<T>::kLanes;
  const int whole = dim == 1 ? channels / kLanes : 0;
  for (int j = 0; j < count; ++j) {
    S* row = rows + j * step;
    const T* in = tile + (first + j * every) * kLanes;
    for (int v = 0; v < whole; ++v, row += kLanes, in += kSteps * kLanes)
      for (int l = 0; l < kLanes; ++l) narrow(in[l], row[l]);
  }
  for (int c = whole * kLanes; c < channels; ++c) {
    const T* in = tile + (c / kLanes * kSteps + first) * kLanes + c % kLanes;
    S* out = rows + c * dim;
    for (int j = 0; j < count; ++j) narrow(in[j * every * kLanes], out[j * step]);
  }
}

// Which steps of a tensor a tile holds: tensor step origin + sign * j is step first + every * j of the tile, j < count.
struct Span {
  int64_t origin, sign;
  int count, first, every;
};

inline int64_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// Rows that will be wanted soon. A tile takes a few cache lines of each of many rows, which is not the pattern that hardware
// prefetchers look for; asked for in portions during the computation before, they come for nothing.
class Prefetch {
 public:
  template <class Strided>
  void add(DType dtype, const Strided& x, int64_t batch, int64_t channel, int channels, const Span& s) {
    if (!x.data || x.dim != 1) return;
    const int64_t size = bytes_of(dtype), offset = batch * x.batch + s.origin * x.step + channel;
    rows_[streams_++] = {static_cast<const char*>(x.data) + offset * size, s.sign * x.step * size, s.count,
                         channels * size};
  }
  // The given of `portions` equal shares.
  void portion(int index, int portions) const {
    for (int k = 0; k < streams_; ++k) {
      const Rows& r = rows_[k];
      for (int i = r.count * index / portions; i < r.count * (index + 1) / portions; ++i)
        for (int64_t byte = 0; byte < r.bytes; byte += 64) __builtin_prefetch(r.first + i * r.step + byte);
    }
  }

 private:
  struct Rows {
    const char* first;
    int64_t step;
    int count;
    int64_t bytes;
  };
  Rows rows_[8];
  int streams_ = 0;
};

// float64 storage goes with float64 arithmetic, and only with it.
template <class T>
void load(DType dtype, const In& x, int64_t batch, int64_t channel, int channels, const Span& s, T* tile) {
  const int64_t offset = batch * x.batch + s.origin * x.step + channel * x.dim, step = s.sign * x.step;
  const auto from = [&](auto* data) {
    load_typed(data + offset, step, x.dim, s.count, channels, tile, s.first, s.every);
  };
  if constexpr (sizeof(T) == 8) {
    from(static_cast<const double*>(x.data));
  } else if (dtype == DType::kBFloat16) {
    from(static_cast<const BFloat16*>(x.data));
  } else if (dtype == DType::kFloat16) {
    from(static_cast<const Float16*>(x.data));
  } else {
    from(static_cast<const float*>(x.data));
  }
}

template <class T>
void store(DType dtype, const Out& x, int64_t batch, int64_t channel, int channels, const Span& s, const T* tile) {
  const int64_t offset = batch * x.batch + s.origin * x.step + channel * x.dim, step = s.sign * x.step;
  const auto to = [&](auto* data) {
    store_typed(data + offset, step, x.dim, s.count, channels, tile, s.first, s.every);
  };
  if constexpr (sizeof(T) == 8) {
    to(static_cast<double*>(x.data));
  } else if (dtype == DType::kBFloat16) {
    to(static_cast<BFloat16*>(x.data));
  } else if (dtype == DType::kFloat16) {
    to(static_cast<Float16*>(x.data));
  } else {
    to(static_cast<float*>(x.data));
  }
}

// Writes 0 to the steps from `valid` on.
template <class T>
void clear_rest(DType dtype, const Out& x, int64_t batch, int64_t channel, int channels, int64_t valid,
                int64_t length, T* tile) {
  if (valid == length) return;
  for (int i = 0; i < kChannels * kSteps; ++i) tile[i] = 0;
  for (int64_t t = valid; t < length; t += kSteps) {
    const int count = int(length - t < kSteps ? length - t : kSteps);
    store(dtype, x, batch, channel, channels, Span{t, 1, count, 0, 1}, tile);
  }
}

// Row `step` of B or C as T.
template <class T>
void load_map(DType dtype, const InMap& x, int64_t batch, int64_t step, int64_t group, int64_t dstate, T* out) {
  const In row{x.data, x.batch, x.step, x.state};
  const int64_t offset = batch * row.batch + step * row.step + group * x.group;
  const auto from = [&](auto* data) {
    for (int64_t n = 0; n < dstate; ++n) out[n] = widen(data[offset + n * row.dim]);
  };
  if constexpr (sizeof(T) == 8) {
    from(static_cast<const double*>(x.data));
  } else if (dtype == DType::kBFloat16) {
    from(static_cast<const BFloat16*>(x.data));
  } else if (dtype == DType::kFloat16) {
    from(static_cast<const Float16*>(x.data));
  } else {
    from(static_cast<const float*>(x.data));
  }
}

// A contiguous row in the storage type.
template <class T>
void store_row(DType dtype, const T* row, int64_t count, void* out, int64_t offset) {
  const auto to = [&](auto* data) {
    for (int64_t n = 0; n < count; ++n) narrow(row[n], data[offset + n]);
  };
  if constexpr (sizeof(T) == 8) {
    to(static_cast<double*>(out));
  } else if (dtype == DType::kBFloat16) {
    to(static_cast<BFloat16*>(out));
  } else if (dtype == DType::kFloat16) {
    to(static_cast<Float16*>(out));
  } else {
    to(static_cast<float*>(out));
  }
}

}  // namespace cmimtl::cpu::CMIMTL_ISA
