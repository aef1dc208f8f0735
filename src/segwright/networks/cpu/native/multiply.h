/* Matrix products with few rows at once; weights are stored in columns of two vectors. */
#ifndef SEGWRIGHT_MULTIPLY_H
#define SEGWRIGHT_MULTIPLY_H

#include "native.h"

enum {
    COLUMNS = 2 * LANES,        /* outputs at once: two vectors */
    ROWS = LANES == 8 ? 6 : 12, /* at once, limited by registers: 6 x 2 sums, 2 weights, 1 input of AVX2's 16; 27 of AVX-512's 32 */
    PREFETCH_AHEAD = 1024,               /* floats that weights are prefetched ahead */
};

/* Start sums (rows, COLUMNS) from `bias` or zeros. `rows` must be a compile-time constant, so that they stay in registers. */
INLINE void begin_sums(int rows, Lanes (*sums)[2], const float *bias) {
    for (int i = 0; i < rows; i++) {
        sums[i][0] = bias ? load(bias) : (Lanes){0};
        sums[i][1] = bias ? load(bias + LANES) : (Lanes){0};
    }
}

/* Add one input of each row, rows being `apart`, times its weights (COLUMNS). */
INLINE void add_to_sums(int rows, Lanes (*sums)[2], const float *inputs, int64_t apart, const float *weights) {
    Lanes low = load(weights), high = load(weights + LANES);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        Lanes value = inputs[i * apart] - (Lanes){0}; /* broadcast */
        sums[i][0] += value * low;
        sums[i][1] += value * high;
    }
}

/* Write sums to rows that are `apart`. */
INLINE void write_sums(int rows, Lanes (*sums)[2], float *to, int64_t apart) {
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        store(to + i * apart, sums[i][0]);
        store(to + i * apart + LANES, sums[i][1]);
    }
}

/* Multiply `rows` rows of `a` (rows, in) by weights (in, COLUMNS) and add `bias` if not NULL. */
INLINE void multiply_rows(
    int rows, const float *a, int64_t in, const float *weights, const float *bias, float *to, int64_t to_stride
) {
    Lanes sums[ROWS][2];
    begin_sums(rows, sums, bias);
    for (const float *end = a + in; a < end; a += LANES) {
#pragma GCC unroll 8
        for (int k = 0; k < LANES; k++, weights += COLUMNS) {
            for (int i = 0; i < COLUMNS; i += LINE) __builtin_prefetch(weights + PREFETCH_AHEAD + i);
            add_to_sums(rows, sums, a + k, in, weights);
        }
    }
    write_sums(rows, sums, to, to_stride);
}

/* Call DO(rows) for all of `count` rows, at most ROWS at once, in steps as even as possible: for 20 rows 4 x 5, since in
 * 3 x 6 + 2 the last step is slow. `rows` is a compile-time constant and `at` the first row. */
#define BY_ROWS(at, count, DO) \
    for (int64_t at = 0, most_ = parts(count, parts(count, ROWS)); at < (count); at += most_) { \
        switch (least(most_, (count) - at)) { \
        CASE(1, DO) CASE(2, DO) CASE(3, DO) CASE(4, DO) CASE(5, DO) CASE(6, DO) \
        CASE(7, DO) CASE(8, DO) CASE(9, DO) CASE(10, DO) CASE(11, DO) CASE(12, DO) \
        } \
    }
#define CASE(rows, DO) \
    case rows: \
        if (rows <= ROWS) DO(rows); \
        break;

/* Multiply `a` (rows, in) by weights (out / COLUMNS, in, COLUMNS), and add `bias` if not NULL, to `to` (rows, out), whose rows
 * are `apart`. */
static inline void multiply(
    const float *a, int64_t rows, int64_t in, const float *weights, int64_t out, const float *bias, float *to, int64_t apart
) {
    for (int64_t c = 0; c < out; c += COLUMNS, weights += in * COLUMNS) {
        const float *b = bias ? bias + c : NULL;
#define DO(count) multiply_rows(count, a + row * in, in, weights, b, to + row * apart + c, apart)
        BY_ROWS(row, rows, DO)
#undef DO
    }
}

#endif
