// Depthwise causal convolution with bias and SiLU, forward and backward, one pass each. Rows are processed in the order of
// the recurrence, so `reverse` is the same convolution on rows read from the last valid one.
#pragma once

#include "chunk.h"

namespace cmimtl::cpu::CMIMTL_ISA {

// Rows of a tile: kSteps of them are outputs, width - 1 around them are read. Beyond this width a chunk has fewer outputs.
template <class T>
struct ConvScratch {
  T *weight, *bias;        // [k][channel], [channel]
  T *dweight, *dbias;      // as these
  T *rows, *gradients;     // [row][channel]; rows before the first valid one are 0
  T* tile;                 // for load and store

  ConvScratch(Scratch memory, int64_t width) {
    weight = memory.take<T>(width * kChannels);
    dweight = memory.take<T>(width * kChannels);
    bias = memory.take<T>(kChannels);
    dbias = memory.take<T>(kChannels);
    rows = memory.take<T>((kSteps + 2 * width) * kChannels);
    gradients = memory.take<T>((kSteps + 2 * width) * kChannels);
    tile = memory.take<T>(kSteps * kChannels);
  }
  static int64_t bytes(int64_t width) {
    return int64_t(sizeof(T)) * kChannels * (2 * width + 2 + 2 * (kSteps + 2 * width) + kSteps) + Scratch::kPieces * (64 + Scratch::kGap);
  }
};

struct ConvTask {
  int64_t batch, channel, valid;
  int channels;
};

inline ConvTask conv_task(const ConvForward& p, int64_t batch, int64_t index) {
  const int64_t channel = index * kChannels, left = p.dim - channel;
  int64_t valid = p.lengths ? p.lengths[batch] : p.length;
  valid = valid < 0 ? 0 : valid > p.length ? p.length : valid;
  return {batch, channel, valid, int(left < kChannels ? left : kChannels)};
}

// Processed rows begin … begin + count - 1 of x into [row][channel]; rows outside the valid ones are 0.
template <class T>
void load_rows(const ConvForward& p, const In& x, const ConvTask& t, int64_t begin, int64_t count, T* tile, T* rows) {
  constexpr int kLanes = Simd<T>::kLanes;
  const int vectors = (t.channels + kLanes - 1) / kLanes;
  for (int64_t done = 0; done < count;) {
    const int64_t row = begin + done;
    T* out = rows + done * kChannels;
    if (row < 0 || row >= t.valid) {
      for (int c = 0; c < kChannels; ++c) out[c] = 0;
      ++done;
      continue;
    }
    int64_t some = count - done < kSteps ? count - done : kSteps;
    some = some < t.valid - row ? some : t.valid - row;
    const Span span{p.reverse ? t.valid - 1 - row : row, p.reverse ? -1 : 1, int(some), 0, 1};
    load(p.dtype, x, t.batch, t.channel, t.channels, span, tile);
    for (int v = 0; v < vectors; ++v)
      for (int j = 0; j < some; ++j)
        at(out + j * kChannels + v * kLanes) = at(tile + (v * kSteps + j) * kLanes);
    done += some;
  }
}

template <class T>
void store_rows(const ConvForward& p, const Out& x, const ConvTask& t, int64_t begin, int count, T* tile) {
  const Span span{p.reverse ? t.valid - 1 - begin : begin, p.reverse ? -1 : 1, count, 0, 1};
  store(p.dtype, x, t.batch, t.channel, t.channels, span, tile);
}

template <class T>
void load_weights(const ConvForward& p, const ConvTask& t, T* weight, T* bias) {
  const T* from = static_cast<const T*>(p.weight) + t.channel * p.width;
  for (int64_t k = 0; k < p.width; ++k)
    for (int c = 0; c < kChannels; ++c) weight[k * kChannels + c] = c < t.channels ? from[c * p.width + k] : T(0);
  load_channels(p.bias, t.channel, t.channels, bias);
}

// bias + sum_k weight[k] * rows[k], the row of the output being the last of `width` rows.
template <class T>
inline typename Simd<T>::V convolve(const T* rows, const T* weight, const T* bias, int64_t width) {
  typename Simd<T>::V sum = at(bias);
  for (int64_t k = 0; k < width; ++k) sum += at(weight + k * kChannels) * at(rows + k * kChannels);
  return sum;
}

template <class T>
void conv_forward_task(const ConvForward& p, int64_t batch, int64_t index, void* memory) {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  constexpr int kLanes = Simd<T>::kLanes;
  const ConvScratch<T> w(Scratch{static_cast<char*>(memory)}, p.width);
  const ConvTask t = conv_task(p, batch, index);
  const int vectors = (t.channels + kLanes - 1) / kLanes;
  load_weights(p, t, w.weight, w.bias);
  for (int64_t begin = 0; begin < t.valid; begin += kSteps) {
    const int count = int(t.valid - begin < kSteps ? t.valid - begin : kSteps);
    load_rows(p, p.x, t, begin - p.width + 1, count + p.width - 1, w.tile, w.rows);
    for (int v = 0; v < vectors; ++v)
      for (int j = 0; j < count; ++j) {
        const int c = v * kLanes;
        V y = convolve(w.rows + j * kChannels + c, w.weight + c, w.bias + c, p.width);
        if (p.silu) y *= sigmoid<T, V, I>(y);
        at(w.tile + (v * kSteps + j) * kLanes) = y;
      }
    store_rows(p, p.out, t, begin, count, w.tile);
  }
  clear_rest(p.dtype, p.out, batch, t.channel, t.channels, t.valid, p.length, w.tile);
}

// The weights' gradients of one sample go to parts: dweight (batch, dim, width), dbias (batch, dim).
template <class T>
void conv_backward_task(const ConvBackward& q, T* dweight_parts, T* dbias_parts, int64_t batch, int64_t index,
                        void* memory) {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  constexpr int kLanes = Simd<T>::kLanes;
  const ConvForward& p = q.forward;
  const ConvScratch<T> w(Scratch{static_cast<char*>(memory)}, p.width);
  const ConvTask t = conv_task(p, batch, index);
  const int vectors = (t.channels + kLanes - 1) / kLanes;
  load_weights(p, t, w.weight, w.bias);
  for (int64_t i = 0; i < p.width * kChannels; ++i) w.dweight[i] = 0;
  for (int c = 0; c < kChannels; ++c) w.dbias[c] = 0;

  const int64_t halo = p.width - 1;
  for (int64_t begin = 0; begin < t.valid; begin += kSteps) {
    const int count = int(t.valid - begin < kSteps ? t.valid - begin : kSteps);
    // x reaches outputs up to halo rows later, whose inputs reach as far back again.
    load_rows(p, p.x, t, begin - halo, count + 2 * halo, w.tile, w.rows);
    load_rows(p, q.dout, t, begin, count + halo, w.tile, w.gradients);
    for (int v = 0; v < vectors; ++v) {
      const int c = v * kLanes;
      if (p.silu)
        for (int64_t j = 0; j < count + halo; ++j) {
          const V y = convolve(w.rows + j * kChannels + c, w.weight + c, w.bias + c, p.width);
          const V s = sigmoid<T, V, I>(y);
          at(w.gradients + j * kChannels + c) *= s * (1 + y * (1 - s));
        }
      V dbias = at(w.dbias + c);
      for (int j = 0; j < count; ++j) {
        const V dy = at(w.gradients + j * kChannels + c);
        V dx = V{};
        dbias += dy;
        for (int64_t k = 0; k < p.width; ++k) {
          at(w.dweight + k * kChannels + c) += dy * at(w.rows + (j + k) * kChannels + c);
          dx += at(w.weight + k * kChannels + c) * at(w.gradients + (j + halo - k) * kChannels + c);
        }
        at(w.tile + (v * kSteps + j) * kLanes) = dx;
      }
      at(w.dbias + c) = dbias;
    }
    store_rows(p, q.dx, t, begin, count, w.tile);
  }
  clear_rest(p.dtype, q.dx, batch, t.channel, t.channels, t.valid, p.length, w.tile);
  const int64_t place = batch * p.dim + t.channel;
  for (int c = 0; c < t.channels; ++c) {
    dbias_parts[place + c] = w.dbias[c];
    for (int64_t k = 0; k < p.width; ++k) dweight_parts[(place + c) * p.width + k] = w.dweight[k * kChannels + c];
  }
}

}  // namespace cmimtl::cpu::CMIMTL_ISA
