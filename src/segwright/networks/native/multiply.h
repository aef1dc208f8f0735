/* Products of matrices with few rows, whose weights lie in columns of two vectors. */
#ifndef SEGWRIGHT_MULTIPLY_H
#define SEGWRIGHT_MULTIPLY_H

#include "native.h"

enum {
    COLUMNS = 2 * LANES, /* outputs in registers: two vectors */
    ROWS = LANES == 8 ? 6 : 12, /* in registers: 6 x 2 sums, 2 weights, 1 input of AVX2's 16; 27 of AVX-512's 32 */
    AHEAD = 1024, /* floats of weights that are asked for before they are needed */
    LINE = 16,    /* floats in a line of the cache */
};

/* Multiply `rows` rows of `a` (in floats each) by weights (in, COLUMNS); `rows` has to be known to the compiler. */
INLINE void multiply_rows(int rows, const float *a, int64_t in, const float *weights, float *to, int64_t to_stride) {
    Lanes sums[ROWS][2];
    for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = (Lanes){0};
    for (const float *end = a + in; a < end; a += LANES) {
#pragma GCC unroll 8
        for (int k = 0; k < LANES; k++, weights += COLUMNS) {
            Lanes low = load(weights), high = load(weights + LANES);
            for (int i = 0; i < COLUMNS; i += LINE) __builtin_prefetch(weights + AHEAD + i);
#pragma GCC unroll 12
            for (int i = 0; i < rows; i++) {
                Lanes value = a[i * in + k] - (Lanes){0}; /* in all lanes */
                sums[i][0] += value * low;
                sums[i][1] += value * high;
            }
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        store(to + i * to_stride, sums[i][0]);
        store(to + i * to_stride + LANES, sums[i][1]);
    }
}

#define CASE(count) \
    case count: \
        if (count <= ROWS) multiply_rows(count, from, in, weights, sums, out); \
        break;

/* Multiply `a` (rows, in) by weights (out / COLUMNS, in, COLUMNS) to `to` (rows, out). */
static void multiply(const float *a, int64_t rows, int64_t in, const float *weights, int64_t out, float *to) {
    int64_t most = parts(rows, parts(rows, ROWS)); /* 4 times 5 rather than 3 times 6 and 2, which are as slow as 4 */
    for (int64_t c = 0; c < out; c += COLUMNS, weights += in * COLUMNS) {
        for (int64_t row = 0, count; row < rows; row += count) {
            const float *from = a + row * in;
            float *sums = to + row * out + c;
            count = least(most, rows - row);
            switch (count) {
            CASE(12) CASE(11) CASE(10) CASE(9) CASE(8) CASE(7)
            CASE(6) CASE(5) CASE(4) CASE(3) CASE(2) CASE(1)
            }
        }
    }
}

#endif
