/* 1x1 convolution to few classes: the last layer of a network. */
#include "norm.h"

enum {
    GROUP = 8,   /* voxels summed together */
    PREFETCH = 2048, /* floats that the image is prefetched ahead: memory is slower than the sums */
};

/* Multiply `count` voxels (count, c), at most GROUP, by weights (classes, c). GROUP sums are computed in any case, those
 * beyond `count` are not used. */
INLINE void classify(
    const float *voxels, int64_t count, int64_t c, const float *weights, const float *bias, int64_t classes, float *out
) {
    for (int64_t k = 0; k < classes; k++) {
        Lanes sums[GROUP] = {0};
        for (int64_t i = 0; i < c; i += LANES) {
            Lanes weight = load(weights + k * c + i);
            for (int v = 0; v < GROUP; v++) sums[v] += load(voxels + v * c + i) * weight;
        }
        Eight whole = sums_of(sums) + (bias ? bias[k] : 0);
        for (int64_t v = 0; v < count; v++) out[v * classes + k] = whole[v];
    }
}

/* A job is `run` voxels, the last ones first: what was written last is in the cache.
 * Arguments: image (n, voxels, c), with factors (n, 3, c) or NULL and slope as for segwright_convolve; n, voxels, c,
 * classes; weights (classes, c), bias (classes) or NULL; run, output (n, voxels, classes). `work` holds (GROUP, c). */
static void head_kernel(const Argument *arguments, float *work, int64_t *next) {
    const float *image = arguments[0].array, *factors = arguments[1].array;
    float slope = arguments[2].real;
    int64_t n = arguments[3].whole, voxels = arguments[4].whole, c = arguments[5].whole, classes = arguments[6].whole;
    const float *weights = arguments[7].array, *bias = arguments[8].array;
    int64_t run = arguments[9].whole, runs = parts(voxels, run);
    float *out = arguments[10].array;
    for (int64_t job; (job = take(next)) < n * runs;) {
        int64_t sample = (n * runs - 1 - job) / runs, first = (n * runs - 1 - job) % runs * run;
        for (int64_t voxel = first; voxel < least(first + run, voxels); voxel += GROUP) {
            int64_t count = least(GROUP, voxels - voxel), at = sample * voxels + voxel;
            for (int64_t each = 0; each < count; each++) {
                for (int64_t i = 0; i < c; i += LANES) {
                    const float *from = image + (at + each) * c + i;
                    Lanes value = load(from);
                    if (i % LINE == 0) __builtin_prefetch(from + PREFETCH);
                    if (factors) value = normalised(value, factors + sample * 3 * c + i, c, slope);
                    store(work + each * c + i, value);
                }
            }
            classify(work, count, c, weights, bias, classes, out + at * classes);
        }
    }
}

static int64_t head_check(const Argument *arguments, int64_t work_size) {
    int64_t c = arguments[5].whole;
    for (int i = 3; i < 7; i++) RETURN_UNLESS_OK(check_sizes(1, &arguments[i].whole));
    RETURN_UNLESS_OK(check_sizes(1, &arguments[9].whole));
    if (c % LANES) return BAD_CHANNELS;
    if (work_size < GROUP * c) return SMALL_WORK;
    RETURN_UNLESS_OK(check_floats(arguments[0].array));
    RETURN_UNLESS_OK(check_optional(arguments[1].array));
    RETURN_UNLESS_OK(check_floats(arguments[7].array));
    RETURN_UNLESS_OK(check_optional(arguments[8].array));
    RETURN_UNLESS_OK(check_floats(arguments[10].array));
    return OK;
}

API const Entry segwright_head = {head_kernel, head_check, 11};
