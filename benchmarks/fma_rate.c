// Measures what the FMA pipes can do: vector FMA instructions, enough of them in flight to fill every pipe.
// Compiled with -march=native by limits.py; a vector is the widest that the compiler has for this machine.
#include <time.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float vec __attribute__((vector_size(BYTES)));

// Latency 4-5 cycles x 2 pipes, rounded up; with factor and offset they fit the 16 registers of AVX2. Named and not
// an array, which the compiler would keep in memory.
#define EACH_CHAIN(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#define CHAINS 12
#define START(i) vec c##i = (vec){0} + (float)i;
#define STEP(i) c##i = c##i * factor + offset;
// The compiler must believe that every chain is read after every step, or it would drop the loop.
#define KEEP(i) __asm__ volatile("" : "+x"(c##i));

int fma_lanes(void) { return BYTES / 4; }

// Vector FMAs per second of the calling thread.
double fma_rate(long iterations) {
  vec chain[CHAINS];
  vec factor = (vec){0} + 0.999f, offset = (vec){0} + 1e-3f;
  EACH_CHAIN(START)
  struct timespec begin, end;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  for (long k = 0; k < iterations; ++k) {
    EACH_CHAIN(STEP)
    EACH_CHAIN(KEEP)
  }
  clock_gettime(CLOCK_MONOTONIC, &end);
  double seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
  return CHAINS * (double)iterations / seconds;
}
