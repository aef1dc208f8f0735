/* Products of matrices with few rows, whose weights lie in columns of two vectors. */
#ifndef SEGWRIGHT_MULTIPLY_H
#define SEGWRIGHT_MULTIPLY_H

#include "native.h"

enum {
    COLUMNS = 16,    /* outputs in registers: two vectors */
    ROWS = 6,        /* rows in registers: 6 x 2 sums, 2 weights and 1 input fill 15 of 16 registers */
    AHEAD = 1024,    /* floats of weights that are asked for before they are needed */
};

/* Multiply `rows` rows of `a` (in floats each) by weights (in, COLUMNS); `rows` has to be known to the compiler. */
INLINE void multiply_rows(int rows, const float *a, int64_t in, const float *weights, float *to, int64_t to_stride) {
    Lanes sums[ROWS][2];
    for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = (Lanes){0};
    for (const float *end = a + in; a < end; a += LANES) {
#pragma GCC unroll 8
        for (int k = 0; k < LANES; k++, weights += COLUMNS) {
            Lanes low = load(weights), high = load(weights + LANES);
            __builtin_prefetch(weights + AHEAD);
#pragma GCC unroll 6
            for (int i = 0; i < rows; i++) {
                Lanes value = a[i * in + k] - (Lanes){0}; /* in all lanes */
                sums[i][0] += value * low;
                sums[i][1] += value * high;
            }
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        store(to + i * to_stride, sums[i][0]);
        store(to + i * to_stride + LANES, sums[i][1]);
    }
}

/* Multiply `a` (rows, in) by weights (out / COLUMNS, in, COLUMNS) to `to` (rows, out). */
static void multiply(const float *a, int64_t rows, int64_t in, const float *weights, int64_t out, float *to) {
    int64_t most = parts(rows, parts(rows, ROWS)); /* 4 times 5 rather than 3 times 6 and 2, which are as slow as 4 */
    for (int64_t c = 0; c < out; c += COLUMNS, weights += in * COLUMNS) {
        for (int64_t row = 0, count; row < rows; row += count) {
            const float *from = a + row * in;
            float *sums = to + row * out + c;
            count = least(most, rows - row);
            switch (count) {
            case 6: multiply_rows(6, from, in, weights, sums, out); break;
            case 5: multiply_rows(5, from, in, weights, sums, out); break;
            case 4: multiply_rows(4, from, in, weights, sums, out); break;
            case 3: multiply_rows(3, from, in, weights, sums, out); break;
            case 2: multiply_rows(2, from, in, weights, sums, out); break;
            case 1: multiply_rows(1, from, in, weights, sums, out); break;
            }
        }
    }
}

#endif
