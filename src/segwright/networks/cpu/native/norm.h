/* Moments of runs of voxels, and the normalisation of a vector. */
#ifndef SEGWRIGHT_NORM_H
#define SEGWRIGHT_NORM_H

#include "native.h"

enum { RECORD = 8 }; /* floats after the moments (2, c) of a run; the first is its number of voxels */

INLINE int64_t record(int64_t c) { return 2 * c + RECORD; }

/* Load from element `at` on; `half` (bfloat16) must be a compile-time constant. */
INLINE Lanes load_from(const void *array, int64_t at, int half) {
    return half ? load_bf16((const uint16_t *)array + at) : load((const float *)array + at);
}

/* Write the mean and the sum of squared deviations of each channel, and the number of voxels, to the record `to`. A run is
 * `voxels` voxels of each of `count` arrays, from element `at` on. */
INLINE void moments(
    const void *const *arrays, int64_t count, int64_t at, int64_t voxels, int64_t c, float *to, int half
) {
    enum { TOGETHER = 4 };
    float number = count * voxels;
    to[2 * c] = number;
    for (int64_t first = 0; first < c; first += TOGETHER * LANES) {
        int64_t vectors = least(TOGETHER, (c - first) / LANES);
        Lanes origin[TOGETHER], sum[TOGETHER], squares[TOGETHER];
        for (int v = 0; v < TOGETHER; v++) {
            origin[v] = v < vectors ? load_from(arrays[0], at + first + v * LANES, half) : (Lanes){0};
            sum[v] = squares[v] = (Lanes){0};
        }
        for (int64_t each = 0; each < count; each++) {
            for (int64_t voxel = 0; voxel < voxels; voxel++) {
                for (int v = 0; v < vectors; v++) {
                    Lanes value = load_from(arrays[each], at + voxel * c + first + v * LANES, half);
                    Lanes distance = value - origin[v];
                    sum[v] += distance;
                    squares[v] += distance * distance;
                }
            }
        }
        for (int v = 0; v < vectors; v++) {
            Lanes mean = sum[v] / number;
            store(to + first + v * LANES, origin[v] + mean);
            store(to + c + first + v * LANES, squares[v] - mean * sum[v]);
        }
    }
}

/* Return leaky_relu((value - mean) * scale + shift) ; `factors` (3, c) are these three, from the
 * first channel of `value` on. */
INLINE Lanes normalised(Lanes value, const float *factors, int64_t c, float slope) {
    return leaky((value - load(factors)) * load(factors + c) + load(factors + 2 * c), slope);
}

#endif
