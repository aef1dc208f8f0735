/* Instance norm with LeakyReLU: moments of runs of voxels, and the values scaled by what came of them. */
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

/* Images (n, voxels, c), and how many voxels make a run; the last run of an image may have fewer. */
typedef struct {
    void *images;
    int64_t half, n, voxels, c, run;
} Runs;

/* A run: its sample, the index of its first element, its voxels. */
typedef struct {
    int64_t sample, at, count;
} Part;

/* The first six arguments of both kernels. */
INLINE Runs runs_of(const Argument *a) {
    return (Runs){a[0].array, a[1].whole, a[2].whole, a[3].whole, a[4].whole, a[5].whole};
}

INLINE int64_t number_of(const Runs *r) { return r->n * parts(r->voxels, r->run); }

INLINE Part part(const Runs *r, int64_t job) {
    int64_t runs = parts(r->voxels, r->run), sample = job / runs, start = job % runs * r->run;
    return (Part){sample, (sample * r->voxels + start) * r->c, least(r->run, r->voxels - start)};
}

/* Give `moments` of each run to (n, runs, 2, c); a job is a run. Arguments: Runs, output. */
API void segwright_moments(const Argument *arguments, float *work, int64_t *next) {
    Runs r = runs_of(arguments);
    float *to = arguments[6].array;
    (void)work;
    for (int64_t job; (job = take(next)) < number_of(&r);) {
        Part p = part(&r, job);
        if (r.half) moments(r.images, p.at, p.count, r.c, to + job * 2 * r.c, 1);
        else moments(r.images, p.at, p.count, r.c, to + job * 2 * r.c, 0);
    }
}

/* Write leaky_relu((from - mean) * scale + shift) for the voxels of a part; mean, scale and shift are (c). */
INLINE void scale(
    const void *from, Part p, int64_t c, const float *mean, const float *scale, const float *shift, float slope,
    void *to, int half
) {
    typedef int32_t Mask __attribute__((vector_size(4 * LANES)));
    for (int64_t voxel = 0; voxel < p.count; voxel++) {
        for (int64_t i = 0; i < c; i += LANES) {
            int64_t at = p.at + voxel * c + i;
            Lanes value = (load_from(from, at, half) - load(mean + i)) * load(scale + i) + load(shift + i);
            Mask positive = value > 0;
            store_to(to, at, (Lanes)((positive & (Mask)value) | (~positive & (Mask)(value * slope))), half);
        }
    }
}

/* Scale each run; a job is a run. Arguments: Runs, means, scales and shifts (n, c), slope, output. */
API void segwright_scale(const Argument *arguments, float *work, int64_t *next) {
    Runs r = runs_of(arguments);
    const float *means = arguments[6].array, *scales = arguments[7].array, *shifts = arguments[8].array;
    float slope = arguments[9].real;
    void *to = arguments[10].array;
    (void)work;
    for (int64_t job; (job = take(next)) < number_of(&r);) {
        Part p = part(&r, job);
        int64_t first = p.sample * r.c;
        if (r.half) scale(r.images, p, r.c, means + first, scales + first, shifts + first, slope, to, 1);
        else scale(r.images, p, r.c, means + first, scales + first, shifts + first, slope, to, 0);
    }
}
