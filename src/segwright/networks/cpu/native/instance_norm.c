/* Instance norm with LeakyReLU in three steps: moments of runs of voxels, their combination for each sample, scaling.
 *
 * If the number of samples is a multiple of that of threads, each thread takes whole samples, which are still in the cache
 * in the last step; otherwise all threads share each step. Both give the same bits.
 */
#include <math.h>

#include "norm.h"

/* Store from element `at` on; as load_from. */
INLINE void store_to(void *array, int64_t at, Lanes value, int half) {
    if (half) store_bf16((uint16_t *)array + at, value);
    else store((float *)array + at, value);
}

/* Arguments of all kernels here: images (n, voxels, c), voxels per run (the last of an image may have fewer), records per
 * sample, and the norm; `weight` and `bias` (c) may be NULL. */
typedef struct {
    void *images;
    int64_t half, n, voxels, c, run, runs;
    const float *weight, *bias;
    float eps, slope;
    float *records, *factors; /* of all samples, if threads share the steps */
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

INLINE uintptr_t bytes_of(const Norm *n) { return n->half ? sizeof(uint16_t) : sizeof(float); } /* of a value */

/* Check what all steps need. */
static int64_t check_norm(const Norm *n) {
    if (n->n < 1 || n->voxels < 1 || n->c < 1 || n->run < 1) return BAD_SIZE;
    if (n->c % LANES) return BAD_CHANNELS;
    RETURN_UNLESS_OK(check_array(n->images, bytes_of(n)));
    RETURN_UNLESS_OK(check_optional(n->weight));
    return check_optional(n->bias);
}

/* Combine the records of a sample's runs in float64 to means, scales and shifts (3, c). */
static void combine_records(const Norm *n, const float *records, float *factors) {
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

/* Normalise the voxels of a part and apply the LeakyReLU. */
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

/* All kernels take the members of Norm in its order. The first three are the steps. */

/* Write a record for each run to (n, runs, record); a job is a run. */
static void moments_kernel(const Argument *arguments, float *work, int64_t *next) {
    Norm n = norm_of(arguments);
    (void)work;
    for (int64_t job; (job = take(next)) < n.n * n.runs;) moments_of(&n, part(&n, job), n.records + job * record(n.c));
}

static int64_t moments_check(const Argument *arguments, int64_t work_size) {
    Norm n = norm_of(arguments);
    (void)work_size;
    RETURN_UNLESS_OK(check_norm(&n));
    if (n.runs != cuts_of(&n)) return BAD_SIZE;
    RETURN_UNLESS_OK(check_floats(n.records));
    return OK;
}

API const Entry segwright_moments = {moments_kernel, moments_check, 14};

/* Combine the records of each sample, from any kernel, to factors (n, 3, c); a job is a sample. */
static void factors_kernel(const Argument *arguments, float *work, int64_t *next) {
    Norm n = norm_of(arguments);
    (void)work;
    for (int64_t job; (job = take(next)) < n.n;) {
        combine_records(&n, n.records + job * n.runs * record(n.c), n.factors + job * 3 * n.c);
    }
}

static int64_t factors_check(const Argument *arguments, int64_t work_size) {
    Norm n = norm_of(arguments);
    (void)work_size;
    RETURN_UNLESS_OK(check_norm(&n));
    if (n.runs < 1) return BAD_SIZE;
    RETURN_UNLESS_OK(check_floats(n.records));
    RETURN_UNLESS_OK(check_floats(n.factors));
    return OK;
}

API const Entry segwright_factors = {factors_kernel, factors_check, 14};

/* Scale the images; a job is a part of them, the last ones first: what was written last is in the cache. */
static void scale_kernel(const Argument *arguments, float *work, int64_t *next) {
    Norm n = norm_of(arguments);
    int64_t jobs = n.n * cuts_of(&n);
    (void)work;
    for (int64_t job; (job = take(next)) < jobs;) {
        Part p = part(&n, jobs - 1 - job);
        scale_part(&n, p, n.factors + p.sample * 3 * n.c);
    }
}

static int64_t scale_check(const Argument *arguments, int64_t work_size) {
    Norm n = norm_of(arguments);
    (void)work_size;
    RETURN_UNLESS_OK(check_norm(&n));
    RETURN_UNLESS_OK(check_floats(n.factors));
    RETURN_UNLESS_OK(check_array(n.out, bytes_of(&n)));
    return OK;
}

API const Entry segwright_scale = {scale_kernel, scale_check, 14};

/* All three for each sample; a job is a sample. The last samples come first, and in the second pass the last runs, as
 * above. `work` holds the records of a sample and its factors. */
static void norm_kernel(const Argument *arguments, float *work, int64_t *next) {
    Norm n = norm_of(arguments);
    float *factors = work + n.runs * record(n.c);
    for (int64_t job; (job = take(next)) < n.n;) {
        int64_t first = (n.n - 1 - job) * n.runs;
        for (int64_t r = 0; r < n.runs; r++) moments_of(&n, part(&n, first + r), work + r * record(n.c));
        combine_records(&n, work, factors);
        for (int64_t r = n.runs - 1; r >= 0; r--) scale_part(&n, part(&n, first + r), factors);
    }
}

static int64_t norm_check(const Argument *arguments, int64_t work_size) {
    Norm n = norm_of(arguments);
    RETURN_UNLESS_OK(check_norm(&n));
    if (n.runs != cuts_of(&n)) return BAD_SIZE;
    if (work_size < n.runs * record(n.c) + 3 * n.c) return SMALL_WORK;
    RETURN_UNLESS_OK(check_array(n.out, bytes_of(&n)));
    return OK;
}

API const Entry segwright_norm = {norm_kernel, norm_check, 14};
