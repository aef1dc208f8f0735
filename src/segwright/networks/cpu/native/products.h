/* Matrix products of Winograd's transformed inputs and weights: in fp16 with AVX512-FP16, which multiplies twice as many
 * values at once, elsewhere in float32. The transforms always compute in float32.
 */
#ifndef SEGWRIGHT_PRODUCTS_H
#define SEGWRIGHT_PRODUCTS_H

#include "multiply.h"

#ifndef __AVX512FP16__

typedef float Point;

enum { INPUTS = 1 }; /* whose weights are stored together */

INLINE Lanes load_points(const Point *from) { return load(from); }
INLINE void store_points(Point *to, Lanes value) { store(to, value); }
INLINE void store_weights(Point *to, const Lanes *inputs) { store(to, inputs[0]); }

static void multiply_points(const Point *a, int64_t rows, int64_t in, const Point *weights, int64_t out, Point *to) {
    multiply(a, rows, in, weights, out, NULL, to, out);
}

#else

typedef _Float16 Point;
typedef Point Pairs __attribute__((vector_size(4 * LANES)));

enum {
    INPUTS = 2,
    FP16_TERMS = 32, /* sums of so many products stay in fp16: with 16, errors are a fifth smaller and it is 12 % slower; 64 is no faster */
};

INLINE Lanes load_points(const Point *from) {
    return (Lanes)_mm512_cvtxph_ps((__m256h)_mm256_loadu_si256((const __m256i *)from));
}

INLINE void store_points(Point *to, Lanes value) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtxps_ph((__m512)value));
}

/* Store weights of LANES outputs as a pair for each, those of even outputs in a vector and those of odd ones in the next. */
INLINE void store_weights(Point *to, const Lanes *inputs) {
    __m512i first = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtxps_ph((__m512)inputs[0]));
    __m512i second = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtxps_ph((__m512)inputs[1]));
    __m512i pairs = _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi64_epi32(pairs));
    _mm256_storeu_si256((__m256i *)(to + COLUMNS), _mm512_cvtepi64_epi32(_mm512_srli_epi64(pairs, 32)));
}

INLINE Pairs load_pairs(const Point *from) { return (Pairs)_mm512_loadu_si512(from); }
INLINE void store_pairs(Point *to, Pairs value) { _mm512_storeu_si512(to, (__m512i)value); }

/* Broadcast a pair of inputs: that is part of the load, unlike for a single fp16 value. */
INLINE Pairs same_pairs(const Point *from) {
    int32_t pair;
    memcpy(&pair, from, sizeof pair);
    return (Pairs)_mm512_set1_epi32(pair);
}

/* Return the sums of pairs, those of `even` in even lanes and those of `odd` between them. */
INLINE Pairs sums_of_pairs(Pairs even, Pairs odd) {
    __m512i ones = _mm512_mask_blend_epi16(0xAAAAAAAA, (__m512i)even, (__m512i)odd);
    __m512i others = _mm512_mask_blend_epi16(0x55555555, (__m512i)even, (__m512i)odd);
    return (Pairs)ones + (Pairs)_mm512_rol_epi32(others, 16);
}

/* Add fp16 sums to float32 totals. */
INLINE void add_fp16(Lanes *totals, Pairs sums) {
    totals[0] += (Lanes)_mm512_cvtxph_ps((__m256h)_mm512_castsi512_si256((__m512i)sums));
    totals[1] += (Lanes)_mm512_cvtxph_ps((__m256h)_mm512_extracti64x4_epi64((__m512i)sums, 1));
}

/* Sum the products of `count` inputs of each row in fp16, separately for even and odd inputs. */
INLINE void sum_pairs(
    int rows, const Point *a, int64_t in, int64_t count, const Point *weights, Pairs *even, Pairs *odd
) {
    for (int i = 0; i < rows; i++) even[i] = odd[i] = (Pairs){0};
#pragma GCC unroll 8
    for (const Point *end = a + count; a < end; a += INPUTS, weights += INPUTS * COLUMNS) {
        Pairs even_weights = load_pairs(weights), odd_weights = load_pairs(weights + COLUMNS);
        for (int i = 0; i < INPUTS * COLUMNS; i += 2 * LINE) __builtin_prefetch(weights + 2 * PREFETCH_AHEAD + i);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            Pairs inputs = same_pairs(a + i * in);
            even[i] += inputs * even_weights;
            odd[i] += inputs * odd_weights;
        }
    }
}

/* As multiply_rows; sums of more than FP16_TERMS products continue in float32, for accuracy. */
INLINE void multiply_pairs(int rows, const Point *a, int64_t in, const Point *weights, Point *to, int64_t apart) {
    Pairs even[ROWS], odd[ROWS];
    if (in <= FP16_TERMS) {
        sum_pairs(rows, a, in, in, weights, even, odd);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) store_pairs(to + i * apart, sums_of_pairs(even[i], odd[i]));
        return;
    }
    Lanes totals[ROWS][2];
    for (int i = 0; i < rows; i++) totals[i][0] = totals[i][1] = (Lanes){0};
    for (int64_t first = 0; first < in; first += FP16_TERMS) {
        sum_pairs(rows, a + first, in, least(FP16_TERMS, in - first), weights + first * COLUMNS, even, odd);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) add_fp16(totals[i], sums_of_pairs(even[i], odd[i]));
    }
    for (int i = 0; i < rows; i++) {
        store_points(to + i * apart, totals[i][0]);
        store_points(to + i * apart + LANES, totals[i][1]);
    }
}

static void multiply_points(const Point *a, int64_t rows, int64_t in, const Point *weights, int64_t out, Point *to) {
    for (int64_t c = 0; c < out; c += COLUMNS, weights += in * COLUMNS) {
#define DO(count) multiply_pairs(count, a + row * in, in, weights, to + row * out + c, out)
        BY_ROWS(row, rows, DO)
#undef DO
    }
}

#endif

#endif
