/* Instance norm with LeakyReLU: moments of runs of voxels, put together for each sample, and the values scaled by them.
 *
 * Where there are as many samples as threads, or a multiple, each takes whole samples, which the second pass still finds
 * in the cache; else all share each of the three steps. Both ways give the same bits.
 */
#include <math.h>

#include "native.h"

/* Element `at` of an array and those after it; `half`, whether they are bfloat16, has to be known to the compiler. */
INLINE Lanes load_from(const void *array, int64_t at, int half) {
    if (!half) return load((const float *)array + at);
    __m128i halves = _mm_loadu_si128((const __m128i *)((const uint16_t *)array + at));
    return (Lanes)_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
}

/* The other way; to the nearest bfloat16, the even one of two. */
INLINE void store_to(void *array, int64_t at, Lanes value, int half) {
    typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
    if (!half) {
        store((float *)array + at, value);
        return;
    }
    Bits bits = (Bits)value;
    __m256i words = (__m256i)((bits + ((bits >> 16) & 1) + 0x7fff) >> 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08); /* each half packs its own */
    _mm_storeu_si128((__m128i *)((uint16_t *)array + at), _mm256_castsi256_si128(packed));
}

/* Write mean and sum of squared deviations of each channel of `count` voxels, from element `at` on, to `to` (2, c). */
INLINE void moments(const void *from, int64_t at, int64_t count, int64_t c, float *to, int half) {
    enum { TOGETHER = 4 };
    for (int64_t first = 0; first < c; first += TOGETHER * LANES) {
        int64_t vectors = least(TOGETHER, (c - first) / LANES);
        Lanes origin[TOGETHER], sum[TOGETHER], squares[TOGETHER];
        for (int v = 0; v < TOGETHER; v++) {
            origin[v] = v < vectors ? load_from(from, at + first + v * LANES, half) : (Lanes){0};
            sum[v] = squares[v] = (Lanes){0};
        }
        for (int64_t voxel = 0; voxel < count; voxel++) {
            for (int v = 0; v < vectors; v++) {
                Lanes distance = load_from(from, at + voxel * c + first + v * LANES, half) - origin[v];
                sum[v] += distance;
                squares[v] += distance * distance;
            }
        }
        for (int v = 0; v < vectors; v++) {
            Lanes mean = sum[v] / (float)count;
            store(to + first + v * LANES, origin[v] + mean);
            store(to + c + first + v * LANES, squares[v] - mean * sum[v]);
        }
    }
}

/* What the kernels are called with: images (n, voxels, c), how many voxels make a run (the last one of an image may have
 * fewer), and the norm; `weight` and `bias` (c) may be none. */
typedef struct {
    void *images;
    int64_t half, n, voxels, c, run;
    const float *weight, *bias;
    float eps, slope;
    float *moments, *factors; /* of all samples, where threads share them */
    void *out;
} Norm;

/* A run: its sample, the index of its first element, its voxels. */
typedef struct {
    int64_t sample, at, count;
} Part;

INLINE Norm norm_of(const Argument *a) {
    return (Norm){a[0].array, a[1].whole, a[2].whole, a[3].whole, a[4].whole,  a[5].whole, a[6].array,
                  a[7].array, a[8].real,  a[9].real,  a[10].array, a[11].array, a[12].array};
}

INLINE int64_t runs_of(const Norm *n) { return parts(n->voxels, n->run); }

INLINE Part part(const Norm *n, int64_t job) {
    int64_t sample = job / runs_of(n), start = job % runs_of(n) * n->run;
    return (Part){sample, (sample * n->voxels + start) * n->c, least(n->run, n->voxels - start)};
}

/* Put the moments of a sample (runs, 2, c) together, in float64, to means, scales and shifts (3, c). */
static void put_together(const Norm *n, const float *moments, float *factors) {
    int64_t c = n->c, runs = runs_of(n), last = n->voxels - (runs - 1) * n->run;
    for (int64_t i = 0; i < c; i++) {
        double mean = 0, squares = 0;
        for (int64_t r = 0; r < runs; r++) mean += (double)moments[2 * r * c + i] * (r < runs - 1 ? n->run : last);
        mean /= n->voxels;
        for (int64_t r = 0; r < runs; r++) {
            double distance = moments[2 * r * c + i] - mean;
            squares += moments[(2 * r + 1) * c + i] + distance * distance * (r < runs - 1 ? n->run : last);
        }
        factors[i] = mean;
        factors[c + i] = (n->weight ? n->weight[i] : 1) / sqrt(squares / n->voxels + n->eps);
        factors[2 * c + i] = n->bias ? n->bias[i] : 0;
    }
}

/* Write leaky_relu((from - mean) * scale + shift) for the voxels of a part; `factors` are these three (3, c). */
INLINE void scale(const void *from, Part p, int64_t c, const float *factors, float slope, void *to, int half) {
    typedef int32_t Mask __attribute__((vector_size(4 * LANES)));
    for (int64_t voxel = 0; voxel < p.count; voxel++) {
        for (int64_t i = 0; i < c; i += LANES) {
            int64_t at = p.at + voxel * c + i;
            Lanes centred = load_from(from, at, half) - load(factors + i);
            Lanes value = centred * load(factors + c + i) + load(factors + 2 * c + i);
            Mask positive = value > 0;
            store_to(to, at, (Lanes)((positive & (Mask)value) | (~positive & (Mask)(value * slope))), half);
        }
    }
}

static void moments_of(const Norm *n, Part p, float *to) {
    if (n->half) moments(n->images, p.at, p.count, n->c, to, 1);
    else moments(n->images, p.at, p.count, n->c, to, 0);
}

static void scale_part(const Norm *n, Part p, const float *factors) {
    if (n->half) scale(n->images, p, n->c, factors, n->slope, n->out, 1);
    else scale(n->images, p, n->c, factors, n->slope, n->out, 0);
}

/* All kernels have the arguments of Norm in its order. The first three are called after each other. */

/* Give moments of each run to (n, runs, 2, c); a job is a run. */
API void segwright_moments(const Argument *arguments, float *work, int64_t *next) {
    Norm n = norm_of(arguments);
    (void)work;
    for (int64_t job; (job = take(next)) < n.n * runs_of(&n);) moments_of(&n, part(&n, job), n.moments + job * 2 * n.c);
}

/* Put the moments of each sample together to (n, 3, c); a job is a sample. */
API void segwright_factors(const Argument *arguments, float *work, int64_t *next) {
    Norm n = norm_of(arguments);
    (void)work;
    for (int64_t job; (job = take(next)) < n.n;) {
        put_together(&n, n.moments + job * runs_of(&n) * 2 * n.c, n.factors + job * 3 * n.c);
    }
}

/* Scale each run; a job is a run. */
API void segwright_scale(const Argument *arguments, float *work, int64_t *next) {
    Norm n = norm_of(arguments);
    (void)work;
    for (int64_t job; (job = take(next)) < n.n * runs_of(&n);) {
        Part p = part(&n, job);
        scale_part(&n, p, n.factors + p.sample * 3 * n.c);
    }
}

/* All three for each sample; a job is a sample. The last samples come first, and in the second pass the last runs: what
 * was written or read last is in the cache. `work` holds (runs * 2 + 3, c). */
API void segwright_norm(const Argument *arguments, float *work, int64_t *next) {
    Norm n = norm_of(arguments);
    int64_t runs = runs_of(&n);
    float *factors = work + runs * 2 * n.c;
    for (int64_t job; (job = take(next)) < n.n;) {
        int64_t first = (n.n - 1 - job) * runs;
        for (int64_t r = 0; r < runs; r++) moments_of(&n, part(&n, first + r), work + r * 2 * n.c);
        put_together(&n, work, factors);
        for (int64_t r = runs - 1; r >= 0; r--) scale_part(&n, part(&n, first + r), factors);
    }
}
