// Depthwise causal convolution with bias and SiLU, forward and backward, one pass each over one line of channels. Rows are
// processed in the order of the recurrence, so `reverse` is the same convolution on rows read from the last valid one.
#pragma once

#include "chunk.h"

namespace cmimtl::cpu::CMIMTL_ISA {

// The common width is compiled in, with its weights in registers; 0 stands for any.
constexpr int kCommonWidth = 4;

template <class S>
struct ConvScratch {
  using T = typename Storage<S>::T;
  T *weight, *dweight;  // [k][lane]
  T *bias, *dbias;      // [lane]
  T *rows,
      *gradients;  // [row][lane], of a chunk: rows after the width - 1 before it, gradients before as many after it
  S *in, *out;

  ConvScratch(Scratch& memory, int64_t width) {
    constexpr int kLine = Simd<T>::kLine;
    for (T** taps : {&weight, &dweight}) *taps = memory.take<T>(width * kLine);
    for (T** channels : {&bias, &dbias}) *channels = memory.take<T>(kLine);
    for (T** tile : {&rows, &gradients}) *tile = memory.take<T>((kSteps + width - 1) * kLine);
    for (S** buffer : {&in, &out}) *buffer = memory.take<S>(kSteps * kLine);
  }
  static int64_t bytes(int64_t width) {
    Scratch memory{0};
    ConvScratch(memory, width);
    return int64_t(memory.next);
  }
};

// One line of one sample.
struct ConvTask {
  int64_t batch;
  Line line;
  int64_t valid;

  // Processed rows begin … begin + count - 1.
  Span span(const ConvForward& p, int64_t begin, int64_t count) const {
    return {p.reverse ? valid - 1 - begin : begin, p.reverse ? -1 : 1, int(count)};
  }
};

template <class T>
ConvTask conv_task(const ConvForward& p, int64_t batch, int64_t index) {
  const int64_t channel = index * Simd<T>::kLine, left = p.dim - channel;
  int64_t valid = p.lengths ? p.lengths[batch] : p.length;
  valid = valid < 0 ? 0 : valid > p.length ? p.length : valid;
  return {batch, {index, channel, int(left < Simd<T>::kLine ? left : Simd<T>::kLine), 0}, valid};
}

// Processed rows begin … begin + count - 1 of x as T, [row][lane]; those before the first are 0.
template <class S, class T>
void load_rows(const ConvForward& p, const In& x, const ConvTask& t, int64_t begin, int64_t count, S* buffer, T* to) {
  constexpr int kLine = Simd<T>::kLine;
  for (; begin < 0 && count; ++begin, --count, to += kLine)
    for (int c = 0; c < kLine; ++c) to[c] = 0;
  while (count) {
    const int64_t some = count < kSteps ? count : kSteps;
    const Rows<const S> from = gather(x, t.batch, t.line.channel, t.line.channels, t.span(p, begin, some), buffer);
    for (int64_t j = 0; j < some; ++j, to += kLine)
      for (int v = 0; v < kLine; v += Simd<T>::kLanes) at(to + v) = load(from[j] + v);
    begin += some, count -= some;
  }
}

template <class S, class T>
void load_weights(const ConvForward& p, const ConvTask& t, const ConvScratch<S>& w, const T*) {
  load_states(static_cast<const T*>(p.weight) + t.line.channel * p.width, p.width, t.line.channels, w.weight);
  load_channels(p.bias, t.line, w.bias);
}

// bias + sum_k weight[k] * rows[k]: the output whose own row is the last of `width`.
template <class T>
inline typename Simd<T>::V convolve(const T* rows, const T* weight, const T* bias, int64_t width) {
  constexpr int kLine = Simd<T>::kLine;
  typename Simd<T>::V sum = at(bias);
  for (int64_t k = 0; k < width; ++k) sum += at(weight + k * kLine) * at(rows + k * kLine);
  return sum;
}

template <int kWidth, class S>
void conv_forward_task(const ConvForward& p, int64_t batch, int64_t index, void* memory) {
  using T = typename Storage<S>::T;
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  constexpr int kLine = Simd<T>::kLine;
  const int64_t width = kWidth ? kWidth : p.width, halo = width - 1;
  Scratch scratch{reinterpret_cast<uintptr_t>(memory)};
  const ConvScratch<S> w(scratch, width);
  const ConvTask t = conv_task<T>(p, batch, index);
  load_weights(p, t, w, w.weight);
  for (int64_t i = 0; i < halo * kLine; ++i) w.rows[i] = 0;
  for (int64_t begin = 0; begin < t.valid; begin += kSteps) {
    const int count = int(t.valid - begin < kSteps ? t.valid - begin : kSteps);
    load_rows(p, p.x, t, begin, count, w.in, w.rows + halo * kLine);
    const Span span = t.span(p, begin, count);
    const Rows<S> out = target(p.out, batch, t.line.channel, t.line.channels, span, w.out);
    for (int j = 0; j < count; ++j)
      for (int v = 0; v < kLine; v += Simd<T>::kLanes) {
        V y = convolve(w.rows + j * kLine + v, w.weight + v, w.bias + v, width);
        if (p.silu) y *= sigmoid<T, V, I>(y);
        store(out[j] + v, y);
      }
    scatter(out, p.out, batch, t.line.channel, t.line.channels, span);
    for (int64_t i = 0; i < halo * kLine; ++i) w.rows[i] = w.rows[count * kLine + i];
  }
  clear_rest<S>(p.out, batch, t.line.channel, t.line.channels, t.valid, p.length);
}

// From the last chunk to the first, so that the gradients which x reaches later are there. The weights' gradients of one
// sample go to parts: dweight (batch, dim, width), dbias (batch, dim).
template <int kWidth, class S>
void conv_backward_task(const ConvBackward& q, typename Storage<S>::T* dweight_parts,
                        typename Storage<S>::T* dbias_parts, int64_t batch, int64_t index, void* memory) {
  using T = typename Storage<S>::T;
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  constexpr int kLine = Simd<T>::kLine;
  const ConvForward& p = q.forward;
  const int64_t width = kWidth ? kWidth : p.width, halo = width - 1;
  Scratch scratch{reinterpret_cast<uintptr_t>(memory)};
  const ConvScratch<S> w(scratch, width);
  const ConvTask t = conv_task<T>(p, batch, index);
  load_weights(p, t, w, w.weight);
  for (int64_t i = 0; i < width * kLine; ++i) w.dweight[i] = 0;
  for (int c = 0; c < kLine; ++c) w.dbias[c] = 0;
  for (int64_t i = 0; i < halo * kLine; ++i) w.gradients[i] = 0;

  for (int64_t begin = ceil_div(t.valid, kSteps) * kSteps - kSteps; begin >= 0; begin -= kSteps) {
    const int count = int(t.valid - begin < kSteps ? t.valid - begin : kSteps);
    // Behind this chunk's gradients, the first ones of the chunk after it.
    for (int64_t i = halo * kLine - 1; i >= 0; --i) w.gradients[count * kLine + i] = w.gradients[i];
    load_rows(p, p.x, t, begin - halo, count + halo, w.in, w.rows);
    load_rows(p, q.dout, t, begin, count, w.in, w.gradients);
    const Span span = t.span(p, begin, count);
    const Rows<S> dx = target(q.dx, batch, t.line.channel, t.line.channels, span, w.out);
    for (int v = 0; v < kLine; v += Simd<T>::kLanes) {
      V dbias = at(w.dbias + v);
      for (int j = 0; j < count; ++j) {
        V dy = at(w.gradients + j * kLine + v);
        if (p.silu) {
          const V y = convolve(w.rows + j * kLine + v, w.weight + v, w.bias + v, width), s = sigmoid<T, V, I>(y);
          dy *= s * (1 + y * (1 - s));
          at(w.gradients + j * kLine + v) = dy;
        }
        dbias += dy;
      }
      at(w.dbias + v) = dbias;
      for (int64_t k = 0; k < width; ++k) {
        V sum = at(w.dweight + k * kLine + v);
        for (int j = 0; j < count; ++j) sum += at(w.gradients + j * kLine + v) * at(w.rows + (j + k) * kLine + v);
        at(w.dweight + k * kLine + v) = sum;
      }
      for (int j = 0; j < count; ++j) {
        V sum = V{};
        for (int64_t k = 0; k < width; ++k)
          sum += at(w.weight + k * kLine + v) * at(w.gradients + (j + halo - k) * kLine + v);
        store(dx[j] + v, sum);
      }
    }
    scatter(dx, q.dx, batch, t.line.channel, t.line.channels, span);
  }
  clear_rest<S>(q.dx, batch, t.line.channel, t.line.channels, t.valid, p.length);
  const int64_t place = batch * p.dim + t.line.channel;
  store_states(w.dweight, width, t.line.channels, dweight_parts + place * width);
  for (int c = 0; c < t.line.channels; ++c) dbias_parts[place + c] = w.dbias[c];
}

// Gradients of the weights: the samples' parts added in the order of the batch.
template <class T>
void reduce_samples(const T* parts, int64_t samples, int64_t size, int64_t begin, int64_t end, T* out) {
  for (int64_t i = begin; i < end; ++i) out[i] = 0;
  for (int64_t b = 0; b < samples; ++b)
    for (int64_t i = begin; i < end; ++i) out[i] += parts[b * size + i];
}

}  // namespace cmimtl::cpu::CMIMTL_ISA
