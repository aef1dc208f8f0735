/* Instance norm with LeakyReLU: moments of runs of voxels, put together for each sample, and the values scaled by them.
 *
 * Where there are as many samples as threads, or a multiple, each takes whole samples, which the second pass still finds
 * in the cache; else all share each of the three steps. Both ways give the same bits.
 */
#include <math.h>

#include "norm.h"

/* The other way of `load_from`. */
INLINE void store_to(void *array, int64_t at, Lanes value, int half) {
    if (half) store_halves((uint16_t *)array + at, value);
    else store((float *)array + at, value);
}

/* What the kernels are called with: images (n, voxels, c), how many voxels make a run (the last one of an image may have
 * fewer), how many records a sample has, and the norm; `weight` and `bias` (c) may be none. */
typedef struct {
    void *images;
    int64_t half, n, voxels, c, run, runs;
    const float *weight, *bias;
    float eps, slope;
    float *records, *factors; /* of all samples, where threads share them */
    void *out;
} Norm;

/* A run: its sample, the index of its first element, its voxels. */
typedef struct {
    int64_t sample, at, count;
} Part;

INLINE Norm norm_of(const Argument *a) {
    return (Norm){a[0].array, a[1].whole, a[2].whole, a[3].whole, a[4].whole,  a[5].whole,  a[6].whole,
                  a[7].array, a[8].array, a[9].real,  a[10].real, a[11].array, a[12].array, a[13].array};
}

INLINE int64_t cuts_of(const Norm *n) { return parts(n->voxels, n->run); }

INLINE Part part(const Norm *n, int64_t job) {
    int64_t sample = job / cuts_of(n), start = job % cuts_of(n) * n->run;
    return (Part){sample, (sample * n->voxels + start) * n->c, least(n->run, n->voxels - start)};
}

/* Put the records of a sample's runs together, in float64, to means, scales and shifts (3, c). */
static void put_together(const Norm *n, const float *records, float *factors) {
    int64_t c = n->c, apart = record(c);
    for (int64_t i = 0; i < c; i++) {
        double mean = 0, squares = 0;
        for (int64_t r = 0; r < n->runs; r++) mean += (double)records[r * apart + i] * records[r * apart + 2 * c];
        mean /= n->voxels;
        for (int64_t r = 0; r < n->runs; r++) {
            double distance = records[r * apart + i] - mean;
            squares += records[r * apart + c + i] + distance * distance * records[r * apart + 2 * c];
        }
        factors[i] = mean;
        factors[c + i] = (n->weight ? n->weight[i] : 1) / sqrt(squares / n->voxels + n->eps);
        factors[2 * c + i] = n->bias ? n->bias[i] : 0;
    }
}

/* Write the LeakyReLU of the norm of the voxels of a part. */
INLINE void scale(const void *from, Part p, int64_t c, const float *factors, float slope, void *to, int half) {
    for (int64_t voxel = 0; voxel < p.count; voxel++) {
        for (int64_t i = 0; i < c; i += LANES) {
            int64_t at = p.at + voxel * c + i;
            store_to(to, at, normalised(load_from(from, at, half), factors + i, c, slope), half);
        }
    }
}

static void moments_of(const Norm *n, Part p, float *to) {
    const void *images = n->images;
    if (n->half) moments(&images, 1, p.at, p.count, n->c, to, 1);
    else moments(&images, 1, p.at, p.count, n->c, to, 0);
}

static void scale_part(const Norm *n, Part p, const float *factors) {
    if (n->half) scale(n->images, p, n->c, factors, n->slope, n->out, 1);
    else scale(n->images, p, n->c, factors, n->slope, n->out, 0);
}

/* All kernels have the arguments of Norm in its order. The first three are called after each other. */

/* Give records of each run to (n, runs, record); a job is a run. */
API void segwright_moments(const Argument *arguments, float *work, int64_t *next) {
    Norm n = norm_of(arguments);
    (void)work;
    for (int64_t job; (job = take(next)) < n.n * n.runs;) moments_of(&n, part(&n, job), n.records + job * record(n.c));
}

/* Put the records of each sample together to (n, 3, c), whoever made them; a job is a sample. */
API void segwright_factors(const Argument *arguments, float *work, int64_t *next) {
    Norm n = norm_of(arguments);
    (void)work;
    for (int64_t job; (job = take(next)) < n.n;) {
        put_together(&n, n.records + job * n.runs * record(n.c), n.factors + job * 3 * n.c);
    }
}

/* Scale the images; a job is a part of them, the last ones first: what was written last is in the cache. */
API void segwright_scale(const Argument *arguments, float *work, int64_t *next) {
    Norm n = norm_of(arguments);
    int64_t jobs = n.n * cuts_of(&n);
    (void)work;
    for (int64_t job; (job = take(next)) < jobs;) {
        Part p = part(&n, jobs - 1 - job);
        scale_part(&n, p, n.factors + p.sample * 3 * n.c);
    }
}

/* All three for each sample; a job is a sample. The last samples come first, and in the second pass the last runs, as
 * above. `work` holds the records of a sample and its factors. */
API void segwright_norm(const Argument *arguments, float *work, int64_t *next) {
    Norm n = norm_of(arguments);
    float *factors = work + n.runs * record(n.c);
    for (int64_t job; (job = take(next)) < n.n;) {
        int64_t first = (n.n - 1 - job) * n.runs;
        for (int64_t r = 0; r < n.runs; r++) moments_of(&n, part(&n, first + r), work + r * record(n.c));
        put_together(&n, work, factors);
        for (int64_t r = n.runs - 1; r >= 0; r--) scale_part(&n, part(&n, first + r), factors);
    }
}
