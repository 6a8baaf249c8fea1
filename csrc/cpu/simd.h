// Vectors of one instruction set, the storage types that they are loaded from, and transpositions.
//
// All of csrc/cpu/*.h but kernels.h and level.h is compiled once per instruction set. The including
// .cpp sets CMIMTL_ISA (a namespace, so that the linker never merges code of two instruction sets)
// and CMIMTL_VECTOR_BYTES, after its target pragma.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "scan_math.h"

namespace cmimtl::cpu::CMIMTL_ISA {

constexpr int kLineBytes = 64;  // of a line of channels in the accumulation type

template <class T>
struct Simd {
  static constexpr int kLanes = CMIMTL_VECTOR_BYTES / sizeof(T);
  static constexpr int kLine = kLineBytes / sizeof(T);  // channels of a line
  static constexpr int kVectors = kLine / kLanes;       // of a line
  using Int = typename FloatTraits<T>::Int;
  typedef T V __attribute__((vector_size(CMIMTL_VECTOR_BYTES)));
  typedef Int I __attribute__((vector_size(CMIMTL_VECTOR_BYTES)));
  // The type of a vector in memory, which may lie anywhere and may have been written as another
  // type.
  typedef T Packed __attribute__((vector_size(CMIMTL_VECTOR_BYTES), may_alias, aligned(alignof(T))));
};

template <class T>
struct Simd<const T> : Simd<T> {};

// The vector that begins at p.
template <class T>
inline typename Simd<T>::Packed& at(T* p) {
  return *reinterpret_cast<typename Simd<T>::Packed*>(p);
}
template <class T>
inline const typename Simd<T>::Packed& at(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Packed*>(p);
}

// Storage types. Each widens to its accumulation type T and narrows from it, to the nearest, ties
// to even; a NaN stays one. Without branches, on scalars and on vectors.

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class S>
struct Storage {
  using T = S;
};
template <>
struct Storage<BFloat16> {
  using T = float;
};
template <>
struct Storage<Float16> {
  using T = float;
};

// These work on bits: F is float and U is uint32_t, or both are vectors of them.
template <class F, class U>
inline F widen_bits(U half, BFloat16) {
  return __builtin_bit_cast(F, U(half << 16));
}
// Exponent and mantissa shifted into place, then rescaled: subnormals come out right by the
// subtraction of 1/2.
template <class F, class U>
inline F widen_bits(U half, Float16) {
  const U word = half << 16, twice = word + word;
  const F normal = __builtin_bit_cast(F, U((twice >> 4) + (0xE0u << 23))) * 0x1p-112f;
  const F subnormal = __builtin_bit_cast(F, U((twice >> 17) | (126u << 23))) - 0.5f;
  const U magnitude = twice < (1u << 27) ? __builtin_bit_cast(U, subnormal) : __builtin_bit_cast(U, normal);
  return __builtin_bit_cast(F, U((word & 0x80000000u) | magnitude));
}
// As a float whose lower half is to be dropped.
template <class F, class U>
inline U round_to_bfloat(F x, U) {
  const U bits = __builtin_bit_cast(U, x), rounded = bits + 0x7FFFu + ((bits >> 16) & 1u), nan = U{} + 0x7FC00000u;
  return x == x ? rounded : nan;
}
template <class F, class U>
inline U narrow_bits(F x, U, BFloat16) {
  return round_to_bfloat(x, U{}) >> 16;
}
// The addition of a power of two, chosen by the exponent, rounds the mantissa to 10 bits.
template <class F, class U>
inline U narrow_bits(F x, U, Float16) {
  const U word = __builtin_bit_cast(U, x), twice = word + word, least = U{} + 0x71000000u;
  // It is infinite where float16 overflows.
  F base = __builtin_bit_cast(F, U(word & 0x7FFFFFFFu)) * 0x1p+112f * 0x1p-110f;
  U bias = twice & 0xFF000000u;
  bias = bias < least ? least : bias;
  base += __builtin_bit_cast(F, U((bias >> 1) + 0x07800000u));
  const U bits = __builtin_bit_cast(U, base);
  const U finite = ((bits >> 13) & 0x7C00u) + (bits & 0x0FFFu), nan = U{} + 0x7E00u;
  return ((word & 0x80000000u) >> 16) | (twice > 0xFF000000u ? nan : finite);
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
template <class S>
inline float widen(S x) {
  return widen_bits<float>(uint32_t(x.bits), x);
}
inline void narrow(float x, float& out) { out = x; }
inline void narrow(double x, double& out) { out = x; }
template <class S>
inline void narrow(float x, S& out) {
  out.bits = uint16_t(narrow_bits(x, uint32_t(), S{}));
}

typedef uint32_t Words __attribute__((vector_size(CMIMTL_VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(CMIMTL_VECTOR_BYTES / 2), may_alias, aligned(2)));

inline Simd<float>::V load(const float* p) { return at(p); }
inline Simd<double>::V load(const double* p) { return at(p); }
inline void store(float* p, Simd<float>::V x) { at(p) = x; }
inline void store(double* p, Simd<double>::V x) { at(p) = x; }
#if CMIMTL_VECTOR_BYTES == 64
// One instruction each, where the compilers' own conversion of 16 halves takes two vectors apart.
// Under a mask of all lanes, since g++ warns of the undefined vector inside of the plain
// intrinsics.
constexpr __mmask16 kAllLanes = 0xFFFF;
inline Simd<float>::V load(const BFloat16* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return Simd<float>::V(Words(_mm512_maskz_cvtepu16_epi32(kAllLanes, halves)) << 16);
}
inline void store(BFloat16* p, Simd<float>::V x) {
  const Words rounded = round_to_bfloat(x, Words{}) >> 16;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(kAllLanes, __m512i(rounded)));
}
inline Simd<float>::V load(const Float16* p) {
  return _mm512_maskz_cvtph_ps(kAllLanes, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store(Float16* p, Simd<float>::V x) {
  const __m256i halves = _mm512_maskz_cvtps_ph(kAllLanes, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves);
}
#else
template <class S>
inline Simd<float>::V load(const S* p) {
  const Words half = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Words);
  return widen_bits<Simd<float>::V>(half, S{});
}
template <class S>
inline void store(S* p, Simd<float>::V x) {
  *reinterpret_cast<Halves*>(p) = __builtin_convertvector(narrow_bits(x, Words{}, S{}), Halves);
}
#endif

// Transposes four by four: rows of channels become rows of steps.
typedef float Quad __attribute__((vector_size(16), may_alias, aligned(4)));

template <int i, int j, int k, int l>
inline Quad shuffle(Quad a, Quad b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, i, j, k, l);
#else
  typedef int Index __attribute__((vector_size(16)));
  return __builtin_shuffle(a, b, Index{i, j, k, l});
#endif
}

// to[j][c] = from[c][j] for a block of 4 x 4; steps of rows in elements.
inline void transpose4(const float* from, int64_t from_row, float* to, int64_t to_row) {
  const auto row = [&](int c) { return *reinterpret_cast<const Quad*>(from + c * from_row); };
  const Quad a = row(0), b = row(1), c = row(2), d = row(3);
  const Quad ab = shuffle<0, 4, 1, 5>(a, b), cd = shuffle<0, 4, 1, 5>(c, d);
  const Quad ab_high = shuffle<2, 6, 3, 7>(a, b), cd_high = shuffle<2, 6, 3, 7>(c, d);
  *reinterpret_cast<Quad*>(to) = shuffle<0, 1, 4, 5>(ab, cd);
  *reinterpret_cast<Quad*>(to + to_row) = shuffle<2, 3, 6, 7>(ab, cd);
  *reinterpret_cast<Quad*>(to + 2 * to_row) = shuffle<0, 1, 4, 5>(ab_high, cd_high);
  *reinterpret_cast<Quad*>(to + 3 * to_row) = shuffle<2, 3, 6, 7>(ab_high, cd_high);
}

#if CMIMTL_VECTOR_BYTES == 64
// Transposes sixteen by sixteen. Each pass exchanges a bit of the row's number with the same bit of
// the lane's.
inline void transpose16(const float* from, int64_t from_row, float* to, int64_t to_row) {
  typedef int32_t Lanes __attribute__((vector_size(64)));
  Simd<float>::V rows[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i] = at(from + i * from_row);
#pragma GCC unroll 4
  for (int bit = 1; bit < 16; bit *= 2) {
    Lanes first, second;  // of the lanes of two rows, 0 to 15 and 16 to 31
#pragma GCC unroll 16
    for (int l = 0; l < 16; ++l) first[l] = l & bit ? 16 + l - bit : l, second[l] = first[l] + bit;
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (i & bit) continue;
      const auto a = __m512(rows[i]), b = __m512(rows[i | bit]);
      rows[i] = _mm512_permutex2var_ps(a, __m512i(first), b);
      rows[i | bit] = _mm512_permutex2var_ps(a, __m512i(second), b);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) at(to + i * to_row) = rows[i];
}
#endif

// to[j * to_row + c] = from[c * from_row + j], c < rows, j < columns.
template <class S>
void transpose(const S* from, int64_t from_row, int64_t rows, int64_t columns, S* to, int64_t to_row) {
  int64_t whole_rows = 0, whole_columns = 0;
  if constexpr (__is_same(S, float)) {
#if CMIMTL_VECTOR_BYTES == 64
    if (rows % 16 == 0 && columns % 16 == 0) {
      for (int64_t c = 0; c < rows; c += 16)
        for (int64_t j = 0; j < columns; j += 16)
          transpose16(from + c * from_row + j, from_row, to + j * to_row + c, to_row);
      return;
    }
#endif
    whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
    for (int64_t c = 0; c < whole_rows; c += 4)
      for (int64_t j = 0; j < whole_columns; j += 4)
        transpose4(from + c * from_row + j, from_row, to + j * to_row + c, to_row);
  }
  for (int64_t c = 0; c < rows; ++c)
    for (int64_t j = c < whole_rows ? whole_columns : 0; j < columns; ++j) to[j * to_row + c] = from[c * from_row + j];
}

}  // namespace cmimtl::cpu::CMIMTL_ISA
