// Numbers as the device computes them: half-precision conversions with the same bits, and approximations as far from the
// exact value as they may be.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace simt {

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Round to nearest, ties to even; every NaN becomes the device's.
inline uint16_t float_to_bfloat16(float x) {
  if (x != x) return 0x7fff;
  const uint32_t bits = uint32_t(to_bits(x));
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint16_t float_to_half(float x) {
  if (x != x) return 0x7fff;
  return uint16_t(to_bits(_Float16(x)));
}
inline float half_to_float(uint16_t bits) { return float(from_bits<_Float16>(bits)); }

// The approximations may be off by what the PTX manual states. The engine takes an error within the bound that depends on
// the argument's bits alone, so that results repeat and a formula that amplifies the error is seen.
inline double error_in_unit(float x) {
  uint32_t h = uint32_t(to_bits(x)) * 2654435761u;
  h ^= h >> 15;
  h *= 2246822519u;
  h ^= h >> 13;
  return double(h) / 0x80000000u - 1.0;  // -1 to 1
}
inline float flush(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }

// Relative error 2^-22; exact at 0.
inline float approximate_exp2(float x) {
  x = flush(x);
  if (x == 0) return 1.0f;
  return flush(float(std::exp2(double(x)) * (1 + 0x1p-22 * error_in_unit(x))));
}
// Relative error 2^-23.
inline float approximate_reciprocal(float x) {
  x = flush(x);
  return flush(float(1.0 / double(x) * (1 + 0x1p-23 * error_in_unit(x))));
}

}  // namespace simt
