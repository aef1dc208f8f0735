/* Winograd's minimal filtering along one axis, for three taps.
 *
 * F(4, 3) takes 6 multiplications for 4 outputs instead of 12, F(5, 3) takes 7 for 5 (Lavin & Gray 2016,
 * arXiv:1509.09308). With stride 2, the outer taps see every other value and F(4, 2) takes 5 for them instead of 8; the
 * middle one sees the rest, 4 more. These four have the same weight, so there are 6 kinds of points. Points are chosen for
 * small errors (benchmarks/LOG.md; Barabasz et al. 2020, arXiv:1803.10986).
 */
#ifndef SEGWRIGHT_FILTERS_H
#define SEGWRIGHT_FILTERS_H

#include "native.h"

enum { IDENTITY = 0, STRIDED = 2, FOUR = 4, FIVE = 5 }; /* filters: one tap, stride 2, F(4, 3), F(5, 3) */

enum {
    TILE = 4,          /* outputs, except for FIVE */
    KINDS = 6,         /* of points, except for FIVE; points of one kind share a weight */
    MAX_KINDS = 7,    /* of any filter */
    MAX_POINTS = 9,          /* points of any filter */
};

/* FOUR: 0, NEAR, -NEAR, FAR, -FAR and infinity. NEAR * FAR is 1, which saves multiplications. */
#define NEAR (2.0f / 3.0f)
#define FAR (3.0f / 2.0f)
#define NEAR2 (NEAR * NEAR)
#define FAR2 (FAR * FAR)
/* STRIDED: HALF, -HALF, 1, -1 and infinity. */
#define HALF 0.5f
#define HALF2 (HALF * HALF)

/* FIVE: A, -A, B, -B, C, -C and infinity. */
#define A (1.0f / 3.0f)
#define B 0.75f
#define C 2.0f
#define A2 (A * A)
#define B2 (B * B)
#define C2 (C * C)

INLINE int64_t tile_of(int64_t filter) { return filter == IDENTITY ? 1 : filter == FIVE ? 5 : TILE; }
INLINE int64_t stride_of(int64_t filter) { return filter == STRIDED ? 2 : 1; }
INLINE int64_t kinds_of(int64_t filter) { return filter == IDENTITY ? 1 : filter == FIVE ? MAX_KINDS : KINDS; }

/* Return the number of points, which is also the number of inputs of a tile. */
INLINE int64_t points_of(int64_t filter) { return filter == STRIDED ? MAX_POINTS : kinds_of(filter); }

/* Return the number of points of a kind; only the last kind may have several. */
INLINE int64_t members_of(int64_t kind, int64_t filter) { return filter == STRIDED && kind == KINDS - 1 ? TILE : 1; }

INLINE int64_t kind_of(int64_t point, int64_t filter) { return least(point, kinds_of(filter) - 1); }

/* Transform three weights to one for each kind of points, `apart`. */
INLINE void transform_weight(int64_t filter, Lanes g0, Lanes g1, Lanes g2, Lanes *out, int64_t apart) {
    if (filter == FOUR) {
        Lanes near = (g0 + NEAR2 * g2) / (2.0f * NEAR * (NEAR2 - FAR2)), near_odd = g1 / (2.0f * (NEAR2 - FAR2));
        Lanes far = (g0 + FAR2 * g2) / (2.0f * FAR * (FAR2 - NEAR2)), far_odd = g1 / (2.0f * (FAR2 - NEAR2));
        out[0] = g0;
        out[apart] = near + near_odd;
        out[2 * apart] = near - near_odd;
        out[3 * apart] = far + far_odd;
        out[4 * apart] = far - far_odd;
        out[5 * apart] = g2;
    } else if (filter == FIVE) {
        Lanes a = (g0 + A2 * g2) / (2.0f * A * (A2 - B2) * (A2 - C2)), a_odd = g1 / (2.0f * (A2 - B2) * (A2 - C2));
        Lanes b = (g0 + B2 * g2) / (2.0f * B * (B2 - A2) * (B2 - C2)), b_odd = g1 / (2.0f * (B2 - A2) * (B2 - C2));
        Lanes c = (g0 + C2 * g2) / (2.0f * C * (C2 - A2) * (C2 - B2)), c_odd = g1 / (2.0f * (C2 - A2) * (C2 - B2));
        out[0] = a_odd + a;
        out[apart] = a_odd - a;
        out[2 * apart] = b_odd + b;
        out[3 * apart] = b_odd - b;
        out[4 * apart] = c_odd + c;
        out[5 * apart] = c_odd - c;
        out[6 * apart] = g2;
    } else {
        out[0] = (g0 + HALF * g2) / (2.0f * HALF * (HALF2 - 1.0f));
        out[apart] = (HALF * g2 - g0) / (2.0f * HALF * (HALF2 - 1.0f));
        out[2 * apart] = (g0 + g2) / (2.0f * (1.0f - HALF2));
        out[3 * apart] = (g2 - g0) / (2.0f * (1.0f - HALF2));
        out[4 * apart] = g2;
        out[5 * apart] = g1;
    }
}

/* Transform inputs to as many points, `apart`. */
INLINE void transform_input(int64_t filter, const Lanes *d, Lanes *out, int64_t apart) {
    if (filter == FOUR) {
        Lanes near = d[4] - FAR2 * d[2], near_odd = d[3] - FAR2 * d[1];
        Lanes far = d[4] - NEAR2 * d[2], far_odd = d[3] - NEAR2 * d[1];
        out[0] = d[0] + d[4] - (NEAR2 + FAR2) * d[2];
        out[apart] = near + NEAR * near_odd;
        out[2 * apart] = near - NEAR * near_odd;
        out[3 * apart] = far + FAR * far_odd;
        out[4 * apart] = far - FAR * far_odd;
        out[5 * apart] = d[1] + d[5] - (NEAR2 + FAR2) * d[3];
    } else if (filter == FIVE) {
        Lanes a = d[4] - (B2 + C2) * d[2] + B2 * C2 * d[0], a_odd = d[5] - (B2 + C2) * d[3] + B2 * C2 * d[1];
        Lanes b = d[4] - (A2 + C2) * d[2] + A2 * C2 * d[0], b_odd = d[5] - (A2 + C2) * d[3] + A2 * C2 * d[1];
        Lanes c = d[4] - (A2 + B2) * d[2] + A2 * B2 * d[0], c_odd = d[5] - (A2 + B2) * d[3] + A2 * B2 * d[1];
        out[0] = a_odd + A * a;
        out[apart] = a_odd - A * a;
        out[2 * apart] = b_odd + B * b;
        out[3 * apart] = b_odd - B * b;
        out[4 * apart] = c_odd + C * c;
        out[5 * apart] = c_odd - C * c;
        out[6 * apart] = d[6] - (A2 + B2 + C2) * d[4] + (A2 * B2 + A2 * C2 + B2 * C2) * d[2] - A2 * B2 * C2 * d[0];
    } else {
        Lanes half = d[6] - d[2], half_odd = d[4] - d[0], one = d[6] - HALF2 * d[2], one_odd = d[4] - HALF2 * d[0];
        out[0] = half + HALF * half_odd;
        out[apart] = half - HALF * half_odd;
        out[2 * apart] = one + one_odd;
        out[3 * apart] = one - one_odd;
        out[4 * apart] = d[8] - (HALF2 + 1.0f) * d[4] + HALF2 * d[0];
        for (int i = 0; i < TILE; i++) out[(5 + i) * apart] = d[1 + 2 * i];
    }
}

/* Transform the products of the points to the outputs of a tile, `apart`. */
INLINE void transform_output(int64_t filter, const Lanes *m, Lanes *out, int64_t apart) {
    if (filter == FOUR) {
        Lanes near = m[1] + m[2], near_odd = m[1] - m[2], far = m[3] + m[4], far_odd = m[3] - m[4];
        out[0] = m[0] + FAR * near + NEAR * far;
        out[apart] = near_odd + far_odd;
        out[2 * apart] = NEAR * near + FAR * far;
        out[3 * apart] = NEAR2 * near_odd + FAR2 * far_odd + m[5];
    } else if (filter == FIVE) {
        Lanes a = m[0] + m[1], b = m[2] + m[3], c = m[4] + m[5];
        Lanes a_odd = m[0] - m[1], b_odd = m[2] - m[3], c_odd = m[4] - m[5];
        out[0] = a + b + c;
        out[apart] = A * a_odd + B * b_odd + C * c_odd;
        out[2 * apart] = A2 * a + B2 * b + C2 * c;
        out[3 * apart] = A * A2 * a_odd + B * B2 * b_odd + C * C2 * c_odd;
        out[4 * apart] = A2 * A2 * a + B2 * B2 * b + C2 * C2 * c + m[6];
    } else {
        Lanes half = m[0] + m[1], half_odd = m[0] - m[1], one = m[2] + m[3], one_odd = m[2] - m[3];
        out[0] = half + one + m[5];
        out[apart] = HALF * half_odd + one_odd + m[6];
        out[2 * apart] = HALF2 * half + one + m[7];
        out[3 * apart] = HALF * HALF2 * half_odd + one_odd + m[4] + m[8];
    }
}

#endif
