// The depthwise causal convolution with bias and SiLU, forward and backward, each in one pass over
// the data. Rows are processed in the order of the recurrence, so `reverse` is the same convolution
// on rows that are read from the last valid one on. A task is one sample and some lines of
// channels, which it goes through chunk by chunk, as in the scans.
#pragma once

#include "chunk.h"

namespace cmimtl::cpu::CMIMTL_ISA {

// The common width is compiled in, with its weights in registers; 0 stands for any other width.
constexpr int kCommonWidth = 4;

// The values that a task keeps of one line from one chunk to the next.
template <class T>
struct ConvLine {
  T *weight, *dweight;  // [k][lane]
  T *bias, *dbias;      // [lane]
  // [row][lane]: width - 1 rows of x before the next chunk, or of gradients after it.
  T* halo;
};

template <class S>
struct ConvScratch {
  using T = typename Storage<S>::T;
  T* lines;  // as at() takes them apart
  // [row][lane], of a chunk: x, and before it width - 1 rows; gradients, and after them as many.
  T *rows, *gradients;
  S *in, *out;
  int64_t width;

  ConvScratch(Scratch& memory, int64_t width, int64_t count) : width(width) {
    constexpr int kLine = Simd<T>::kLine;
    lines = memory.take<T>(count * of_line());
    for (T** tile : {&rows, &gradients}) *tile = memory.take<T>((kSteps + width - 1) * kLine);
    for (S** buffer : {&in, &out}) *buffer = memory.take<S>(kSteps * kLine);
  }
  ConvLine<T> at(int64_t index) const {
    constexpr int kLine = Simd<T>::kLine;
    T* next = lines + index * of_line();
    const auto take = [&](int64_t rows) {
      T* piece = next;
      next += rows * kLine;
      return piece;
    };
    return {.weight = take(width), .dweight = take(width), .bias = take(1), .dbias = take(1), .halo = take(width - 1)};
  }

 private:
  int64_t of_line() const { return (3 * width + 1) * Simd<T>::kLine; }
};

template <class T>
Line conv_line(const ConvForward& p, int64_t index) {
  const int64_t channel = index * Simd<T>::kLine, left = p.dim - channel;
  return {
      .index = index, .channel = channel, .channels = int(left < Simd<T>::kLine ? left : Simd<T>::kLine), .group = 0};
}

// Processed rows begin … begin + count - 1.
inline Steps conv_steps(const ConvForward& p, int64_t valid, int64_t begin, int64_t count) {
  return {.origin = p.reverse ? valid - 1 - begin : begin, .sign = p.reverse ? -1 : 1, .count = int(count)};
}

// Loads the rows of these steps as T, [row][lane].
template <class S, class T>
void load_rows(const In& x, int64_t batch, const Line& line, const Steps& steps, S* buffer, T* to) {
  constexpr int kLine = Simd<T>::kLine;
  const Rows<const S> from = gather(x, batch, line.channel, line.channels, steps, buffer);
  for (int j = 0; j < steps.count; ++j)
#pragma GCC unroll 8
    for (int v = 0; v < kLine; v += Simd<T>::kLanes) at(to + j * kLine + v) = load(from[j] + v);
}

// bias + sum_k weight[k] * rows[k]: the output whose own row is the last of `width`.
template <class T>
inline typename Simd<T>::V convolve(const T* rows, const T* weight, const T* bias, int64_t width) {
  constexpr int kLine = Simd<T>::kLine;
  typename Simd<T>::V sum = at(bias);
  for (int64_t k = 0; k < width; ++k) sum += at(weight + k * kLine) * at(rows + k * kLine);
  return sum;
}

// Calls visit(line's place, line, begin, count, what comes next) for each chunk of rows and line of
// a task; `backwards`, the last chunk comes first.
template <class S, class F>
void each_conv_chunk(const ConvForward& p, const In& second, const Out& result, int64_t batch, int64_t valid,
                     int64_t first, int64_t last, bool backwards, F visit) {
  using T = typename Storage<S>::T;
  const int64_t chunks = ceil_div(valid, kSteps);
  Visits at(p.x, chunks, last - first), later = at.later(1);
  const auto begin_of = [&](const Visits& at) { return (backwards ? chunks - 1 - at.chunk() : at.chunk()) * kSteps; };
  const auto count_at = [&](int64_t begin) { return valid - begin < kSteps ? valid - begin : kSteps; };
  for (; at.more(); at.advance(), later.advance()) {
    Prefetch next;
    if (later.more()) {
      const int64_t begin = begin_of(later), channel = conv_line<T>(p, first + later.piece()).channel;
      const Steps steps = conv_steps(p, valid, begin, count_at(begin));
      next.add<S>(p.x, batch, channel, steps);
      next.add<S>(second, batch, channel, steps);
      next.add<S>(result, batch, channel, steps);
    }
    const int64_t begin = begin_of(at);
    visit(at.piece(), conv_line<T>(p, first + at.piece()), begin, int(count_at(begin)), next);
  }
}

template <int kWidth, class S>
void conv_forward_task(const ConvForward& p, int64_t batch, int64_t first, int64_t last, void* memory) {
  using T = typename Storage<S>::T;
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  constexpr int kLine = Simd<T>::kLine;
  const int64_t width = kWidth ? kWidth : p.width, halo = width - 1;
  Scratch scratch{reinterpret_cast<uintptr_t>(memory)};
  const ConvScratch<S> w(scratch, width, last - first);
  const int64_t valid = valid_length(p.lengths, p.length, batch);
  for (int64_t index = first; index < last; ++index) {
    const Line line = conv_line<T>(p, index);
    const ConvLine<T> kept = w.at(index - first);
    load_states(static_cast<const T*>(p.weight) + line.channel * width, width, line.channels, kept.weight);
    load_channels(p.bias, line, kept.bias);
    for (int64_t i = 0; i < halo * kLine; ++i) kept.halo[i] = 0;
    clear_rest<S>(p.out, batch, line.channel, line.channels, valid, p.length);
  }
  each_conv_chunk<S>(p, In{}, p.out, batch, valid, first, last, false,
                     [&](int64_t place, const Line& line, int64_t begin, int count, const Prefetch& next) {
                       const ConvLine<T> kept = w.at(place);
                       const Steps steps = conv_steps(p, valid, begin, count);
                       for (int64_t i = 0; i < halo * kLine; ++i) w.rows[i] = kept.halo[i];
                       load_rows(p.x, batch, line, steps, w.in, w.rows + halo * kLine);
                       for (int64_t i = 0; i < halo * kLine; ++i) kept.halo[i] = w.rows[count * kLine + i];
                       const Target<S> out = target(p.out, batch, line.channel, line.channels, steps, w.out);
                       for (int j = 0; j < count; ++j) {
                         next.row(j, 0, 1);
#pragma GCC unroll 8
                         for (int v = 0; v < kLine; v += Simd<T>::kLanes) {
                           V y = convolve(w.rows + j * kLine + v, kept.weight + v, kept.bias + v, width);
                           if (p.silu) y *= sigmoid<T, V, I>(y);
                           out.put(j, v, y);
                         }
                       }
                       scatter(out, p.out, batch, line.channel, line.channels, steps);
                     });
}

// Goes from the last chunk to the first, so that the gradients of the later outputs that an x
// reaches are known. The weights' gradients of one sample are written to its parts: dweight (batch,
// dim, width), dbias (batch, dim).
template <int kWidth, class S>
void conv_backward_task(const ConvBackward& q, typename Storage<S>::T* dweight_parts,
                        typename Storage<S>::T* dbias_parts, int64_t batch, int64_t first, int64_t last, void* memory) {
  using T = typename Storage<S>::T;
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  constexpr int kLine = Simd<T>::kLine;
  const ConvForward& p = q.forward;
  const int64_t width = kWidth ? kWidth : p.width, halo = width - 1;
  Scratch scratch{reinterpret_cast<uintptr_t>(memory)};
  const ConvScratch<S> w(scratch, width, last - first);
  const int64_t valid = valid_length(p.lengths, p.length, batch);
  for (int64_t index = first; index < last; ++index) {
    const Line line = conv_line<T>(p, index);
    const ConvLine<T> kept = w.at(index - first);
    load_states(static_cast<const T*>(p.weight) + line.channel * width, width, line.channels, kept.weight);
    load_channels(p.bias, line, kept.bias);
    for (int64_t i = 0; i < width * kLine; ++i) kept.dweight[i] = 0;
    for (int64_t i = 0; i < halo * kLine; ++i) kept.halo[i] = 0;
    for (int c = 0; c < kLine; ++c) kept.dbias[c] = 0;
    clear_rest<S>(q.dx, batch, line.channel, line.channels, valid, p.length);
  }
  each_conv_chunk<S>(p, q.dout, q.dx, batch, valid, first, last, true,
                     [&](int64_t place, const Line& line, int64_t begin, int count, const Prefetch& next) {
                       const ConvLine<T> kept = w.at(place);
                       const Steps steps = conv_steps(p, valid, begin, count);
                       // The rows before the chunk, in pieces that a buffer holds; before the first
                       // one there are zeros.
                       for (int64_t done = 0; done < halo;) {
                         const int64_t row = begin - halo + done, left = halo - done;
                         T* to = w.rows + done * kLine;
                         if (row < 0) {
                           for (int c = 0; c < kLine; ++c) to[c] = 0;
                           ++done;
                           continue;
                         }
                         const int64_t some = left < kSteps ? left : kSteps;
                         load_rows(p.x, batch, line, conv_steps(p, valid, row, some), w.in, to);
                         done += some;
                       }
                       load_rows(p.x, batch, line, steps, w.in, w.rows + halo * kLine);
                       load_rows(q.dout, batch, line, steps, w.in, w.gradients);
                       for (int64_t i = 0; i < halo * kLine; ++i) w.gradients[count * kLine + i] = kept.halo[i];
                       const Target<S> dx = target(q.dx, batch, line.channel, line.channels, steps, w.out);
                       // The rows of `gradients` that exist: past the last step there are none, and
                       // the zeros there must meet no infinite weight. The first `whole` rows of dx
                       // take all of their gradients from rows that exist.
                       const int64_t left = valid - begin, known = left < count + halo ? left : count + halo;
                       const int whole = known > halo ? int(known - halo) : 0;
#pragma GCC unroll 8
                       for (int v = 0; v < kLine; v += Simd<T>::kLanes) {
                         V dbias = at(kept.dbias + v);
                         for (int j = 0; j < count; ++j) {
                           next.row(j, 0, 1);
                           V dy = at(w.gradients + j * kLine + v);
                           if (p.silu) {
                             const V y = convolve(w.rows + j * kLine + v, kept.weight + v, kept.bias + v, width),
                                     s = sigmoid<T, V, I>(y);
                             dy *= s * (1 + y * (1 - s));
                             at(w.gradients + j * kLine + v) = dy;
                           }
                           dbias += dy;
                         }
                         at(kept.dbias + v) = dbias;
                         for (int64_t k = 0; k < width; ++k) {
                           V sum = at(kept.dweight + k * kLine + v);
                           for (int j = 0; j < count; ++j)
                             sum += at(w.gradients + j * kLine + v) * at(w.rows + (j + k) * kLine + v);
                           at(kept.dweight + k * kLine + v) = sum;
                         }
                         const auto put = [&](int j, int64_t first) __attribute__((always_inline)) {
                           V sum = V{};
                           for (int64_t k = first; k < width; ++k)
                             sum += at(kept.weight + k * kLine + v) * at(w.gradients + (j + halo - k) * kLine + v);
                           dx.put(j, v, sum);
                         };
                         for (int j = 0; j < whole; ++j) put(j, 0);
                         for (int j = whole; j < count; ++j) put(j, j + halo + 1 - known);
                       }
                       // The chunk before needs the first ones of these gradients.
                       for (int64_t i = 0; i < halo * kLine; ++i) kept.halo[i] = w.gradients[i];
                       scatter(dx, q.dx, batch, line.channel, line.channels, steps);
                     });
  for (int64_t index = first; index < last; ++index) {
    const Line line = conv_line<T>(p, index);
    const ConvLine<T> kept = w.at(index - first);
    const int64_t place = batch * p.dim + line.channel;
    store_states(kept.dweight, width, line.channels, dweight_parts + place * width);
    for (int c = 0; c < line.channels; ++c) dbias_parts[place + c] = kept.dbias[c];
  }
}

// Adds up the gradients of the weights: the samples' parts, in the order of the batch.
template <class T>
void reduce_samples(const T* parts, int64_t samples, int64_t size, int64_t begin, int64_t end, T* out) {
  for (int64_t i = begin; i < end; ++i) out[i] = 0;
  for (int64_t b = 0; b < samples; ++b)
    for (int64_t i = begin; i < end; ++i) out[i] += parts[b * size + i];
}

}  // namespace cmimtl::cpu::CMIMTL_ISA
