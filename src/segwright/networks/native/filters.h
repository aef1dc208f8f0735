/* Winograd's minimal filtering along one axis, for three taps and TILE outputs.
 *
 * With stride 1, F(4, 3) takes 6 multiplications instead of 12 (Lavin & Gray 2016, arXiv:1509.09308). With stride 2, the
 * outer taps see every other value and F(4, 2) takes 5 for them instead of 8; the middle one sees the rest, 4 more. All
 * four of these have the same weight, so there are 6 kinds of points either way. Points are chosen for small errors
 * (benchmarks/LOG.md; Barabasz et al. 2020, arXiv:1803.10986).
 */
#ifndef SEGWRIGHT_FILTERS_H
#define SEGWRIGHT_FILTERS_H

#include "native.h"

enum {
    TILE = 4,      /* outputs */
    KINDS = 6,     /* of points: those of one kind have the same weight */
    MOST = 9,      /* points, of either stride */
};

/* With stride 1: 0, NEAR, -NEAR, FAR, -FAR and infinity. NEAR * FAR is 1, which saves multiplications. */
#define NEAR (2.0f / 3.0f)
#define FAR (3.0f / 2.0f)
#define NEAR2 (NEAR * NEAR)
#define FAR2 (FAR * FAR)
/* With stride 2: HALF, -HALF, 1, -1 and infinity. */
#define HALF 0.5f
#define HALF2 (HALF * HALF)

/* Return how many points there are, which is how many inputs TILE outputs need. */
INLINE int64_t points_of(int64_t stride) { return stride == 1 ? 6 : 9; }

INLINE int64_t kind_of(int64_t point) { return least(point, KINDS - 1); }

/* Return how many points of a kind there are. */
INLINE int64_t members_of(int64_t kind, int64_t stride) { return stride == 2 && kind == KINDS - 1 ? TILE : 1; }

/* Transform three weights to KINDS, `apart`. */
INLINE void transform_weight(int64_t stride, Lanes g0, Lanes g1, Lanes g2, Lanes *out, int64_t apart) {
    if (stride == 1) {
        Lanes near = (g0 + NEAR2 * g2) / (2.0f * NEAR * (NEAR2 - FAR2)), near_odd = g1 / (2.0f * (NEAR2 - FAR2));
        Lanes far = (g0 + FAR2 * g2) / (2.0f * FAR * (FAR2 - NEAR2)), far_odd = g1 / (2.0f * (FAR2 - NEAR2));
        out[0] = g0;
        out[apart] = near + near_odd;
        out[2 * apart] = near - near_odd;
        out[3 * apart] = far + far_odd;
        out[4 * apart] = far - far_odd;
        out[5 * apart] = g2;
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
INLINE void transform_input(int64_t stride, const Lanes *d, Lanes *out, int64_t apart) {
    if (stride == 1) {
        Lanes near = d[4] - FAR2 * d[2], near_odd = d[3] - FAR2 * d[1];
        Lanes far = d[4] - NEAR2 * d[2], far_odd = d[3] - NEAR2 * d[1];
        out[0] = d[0] + d[4] - (NEAR2 + FAR2) * d[2];
        out[apart] = near + NEAR * near_odd;
        out[2 * apart] = near - NEAR * near_odd;
        out[3 * apart] = far + FAR * far_odd;
        out[4 * apart] = far - FAR * far_odd;
        out[5 * apart] = d[1] + d[5] - (NEAR2 + FAR2) * d[3];
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

/* Transform the products of the points to TILE outputs, `apart`. */
INLINE void transform_output(int64_t stride, const Lanes *m, Lanes *out, int64_t apart) {
    if (stride == 1) {
        Lanes near = m[1] + m[2], near_odd = m[1] - m[2], far = m[3] + m[4], far_odd = m[3] - m[4];
        out[0] = m[0] + FAR * near + NEAR * far;
        out[apart] = near_odd + far_odd;
        out[2 * apart] = NEAR * near + FAR * far;
        out[3 * apart] = NEAR2 * near_odd + FAR2 * far_odd + m[5];
    } else {
        Lanes half = m[0] + m[1], half_odd = m[0] - m[1], one = m[2] + m[3], one_odd = m[2] - m[3];
        out[0] = half + one + m[5];
        out[apart] = HALF * half_odd + one_odd + m[6];
        out[2 * apart] = HALF2 * half + one + m[7];
        out[3 * apart] = HALF * HALF2 * half_odd + one_odd + m[4] + m[8];
    }
}

#endif
