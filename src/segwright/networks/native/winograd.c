/* Convolutions by Winograd's minimal filtering, float32.
 *
 * Winograd's F(4, 3) takes 6 multiplications for 4 outputs along an axis where the direct way takes 12 (Lavin & Gray
 * 2016, "Fast algorithms for convolutional neural networks", arXiv:1509.09308). With three taps along the depth it is
 * applied there first, to whole rows of voxels: six planes become six depths, which are convolved like images of their
 * own, by tiles of 4x4, and give four planes of the output. So no more than one depth of a block needs to be in the
 * cache with its weights.
 */
#include "multiply.h"
#include "norm.h"

enum {
    TILE = 4,        /* outputs of a tile along each axis of the plane */
    PATCH = 6,       /* inputs that they need */
    POINTS = 36,     /* multiplications per tile, input and output channel */
    STAGGER = 16,    /* floats between the arrays of two points, so that they do not meet in the same cache lines */
};

/* The three matrices of F(4, 3) along one axis, with the points 0, NEAR, -NEAR, FAR, -FAR and infinity. NEAR * FAR is
 * 1, which saves multiplications, and with 2/3 and 3/2 errors are a third of those with the usual 1 and 2
 * (benchmarks/LOG.md; Barabasz et al. 2020, arXiv:1803.10986, on the choice of points). */

#define NEAR (2.0f / 3.0f)
#define FAR (3.0f / 2.0f)
#define NEAR2 (NEAR * NEAR)
#define FAR2 (FAR * FAR)

INLINE void transform_weight(Lanes g0, Lanes g1, Lanes g2, Lanes *out, int64_t stride) {
    Lanes near = (g0 + NEAR2 * g2) / (2.0f * NEAR * (NEAR2 - FAR2)), near_odd = g1 / (2.0f * (NEAR2 - FAR2));
    Lanes far = (g0 + FAR2 * g2) / (2.0f * FAR * (FAR2 - NEAR2)), far_odd = g1 / (2.0f * (FAR2 - NEAR2));
    out[0] = g0;
    out[stride] = near + near_odd;
    out[2 * stride] = near - near_odd;
    out[3 * stride] = far + far_odd;
    out[4 * stride] = far - far_odd;
    out[5 * stride] = g2;
}

INLINE void transform_input(const Lanes *d, Lanes *out, int64_t stride) {
    Lanes near = d[4] - FAR2 * d[2], near_odd = d[3] - FAR2 * d[1];
    Lanes far = d[4] - NEAR2 * d[2], far_odd = d[3] - NEAR2 * d[1];
    out[0] = d[0] + d[4] - (NEAR2 + FAR2) * d[2];
    out[stride] = near + NEAR * near_odd;
    out[2 * stride] = near - NEAR * near_odd;
    out[3 * stride] = far + FAR * far_odd;
    out[4 * stride] = far - FAR * far_odd;
    out[5 * stride] = d[1] + d[5] - (NEAR2 + FAR2) * d[3];
}

INLINE void transform_output(const Lanes *m, Lanes *out, int64_t stride) {
    Lanes near = m[1] + m[2], near_odd = m[1] - m[2], far = m[3] + m[4], far_odd = m[3] - m[4];
    out[0] = m[0] + FAR * near + NEAR * far;
    out[stride] = near_odd + far_odd;
    out[2 * stride] = NEAR * near + FAR * far;
    out[3 * stride] = NEAR2 * near_odd + FAR2 * far_odd + m[5];
}

INLINE int64_t depths_of(int64_t taps) { return taps == 3 ? PATCH : 1; }

/* Transform weights (taps, 3, 3, in, out) to (depths, POINTS) times (out / COLUMNS, in, COLUMNS), STAGGER apart; a job
 * is COLUMNS. Arguments: weights, taps, in, out, points. */
API void segwright_weights(const Argument *arguments, float *work, int64_t *next) {
    const float *weight = arguments[0].array;
    int64_t taps = arguments[1].whole, in = arguments[2].whole, out = arguments[3].whole;
    float *points = arguments[4].array;
    int64_t plane = in * out, apart = plane + STAGGER;
    (void)work;
    for (int64_t job; (job = take(next)) < out / COLUMNS;) {
        float *to = points + job * in * COLUMNS;
        for (int64_t each = 0; each < in * COLUMNS; each += LANES) {
            const float *from = weight + each / COLUMNS * out + job * COLUMNS + each % COLUMNS;
            Lanes whole[3][POINTS];
            for (int64_t tap = 0; tap < taps; tap++, from += 9 * plane) {
                Lanes g[9], half[18];
                for (int i = 0; i < 9; i++) g[i] = load(from + i * plane);
                for (int i = 0; i < 3; i++) transform_weight(g[i], g[3 + i], g[6 + i], half + i, 3);
                for (int i = 0; i < PATCH; i++) {
                    transform_weight(half[3 * i], half[3 * i + 1], half[3 * i + 2], whole[tap] + PATCH * i, 1);
                }
            }
            for (int i = 0; i < POINTS; i++) {
                Lanes deep[PATCH] = {whole[0][i]};
                if (taps == 3) transform_weight(whole[0][i], whole[1][i], whole[2][i], deep, 1);
                for (int64_t q = 0; q < depths_of(taps); q++) store(to + (q * POINTS + i) * apart + each, deep[q]);
            }
        }
    }
}

/* The images and how the work on them is cut: a unit is TILE planes of a sample, or one with a single tap; a job is
 * `units` of them and `length` rows of tiles, of which it takes `strip` at a time. */
typedef struct {
    int64_t n, d, h, w;             /* of both inputs and of the output */
    int64_t first, second;          /* channels of the two inputs, the second may have none */
    int64_t out;                    /* channels of the output */
    int64_t taps;                   /* along the depth: 1 or 3 */
    int64_t units, length, strip;
} Shape;

INLINE int64_t planes_of(const Shape *s) { return s->taps == 3 ? TILE : 1; } /* of a unit */
INLINE int64_t units_of(const Shape *s) { return parts(s->d, planes_of(s)); } /* of a sample */
INLINE int64_t depths(const Shape *s) { return depths_of(s->taps); }
INLINE int64_t down(const Shape *s) { return parts(s->h, TILE); }
INLINE int64_t across(const Shape *s) { return parts(s->w, TILE); }
INLINE int64_t channels(const Shape *s) { return s->first + s->second; }
INLINE int64_t tiles(const Shape *s) { return s->units * s->strip * across(s); } /* that are multiplied at once */

/* Of a strip with the border that its tiles' patches need, and of its output: rows, floats of a row and of a depth. */
INLINE int64_t rows_in(const Shape *s) { return TILE * s->strip + PATCH - TILE; }
INLINE int64_t row_in(const Shape *s) { return (TILE * across(s) + PATCH - TILE) * channels(s); }
INLINE int64_t depth_in(const Shape *s) { return rows_in(s) * row_in(s); }
INLINE int64_t row_out(const Shape *s) { return TILE * across(s) * s->out; }
INLINE int64_t depth_out(const Shape *s) { return TILE * s->strip * row_out(s); }

/* Floats from one point of all tiles to the next. */
INLINE int64_t apart_in(const Shape *s) { return tiles(s) * channels(s) + STAGGER; }
INLINE int64_t apart_out(const Shape *s) { return tiles(s) * s->out + STAGGER; }

/* What is convolved at once: `units` from `unit` on, `strip` rows of tiles from `top` on. */
typedef struct {
    int64_t unit, units, top, strip;
} Step;

/* What a thread works in: strips of the inputs and the outputs (units, depths), and the points of one depth's tiles
 * (POINTS, tiles, c) before and after they are multiplied. Row y of the inputs has place y + 1 of a ring, so the last
 * ones of a strip need not be made again for the next. */
typedef struct {
    float *in, *out, *points, *products;
} Room;

INLINE Room room_of(const Shape *s, float *work) {
    Room room = {.in = work};
    room.out = room.in + s->units * depths(s) * depth_in(s);
    room.points = room.out + s->units * depths(s) * depth_out(s);
    room.products = room.points + POINTS * apart_in(s);
    return room;
}

/* Return how many floats of `work` each thread needs. */
API int64_t segwright_convolve_work(const Shape *s) {
    return s->units * depths(s) * (depth_in(s) + depth_out(s)) + POINTS * (apart_in(s) + apart_out(s));
}

/* An image (n, d, h, w, c); with `factors` (n, 3, c) its norm's LeakyReLU is what is convolved. */
typedef struct {
    const float *values;
    int64_t c;
    const float *factors;
    float slope;
} Image;

/* Transform a row of `w` voxels along the depth: of `planes` (w, c), none where there are zeros, to depths (w, wide) that
 * lie `apart`. */
INLINE void spread_row(
    int64_t taps, const float *const *planes, const float *factors, float slope, int64_t w, int64_t c, float *to,
    int64_t wide, int64_t apart
) {
    for (int64_t x = 0; x < w; x++) {
        for (int64_t i = 0; i < c; i += LANES) {
            Lanes whole[PATCH], deep[PATCH];
            for (int q = 0; q < depths_of(taps); q++) {
                whole[q] = planes[q] ? load(planes[q] + x * c + i) : (Lanes){0};
                if (factors && planes[q]) whole[q] = normalised(whole[q], factors + i, c, slope);
            }
            if (taps == 3) transform_input(whole, deep, 1);
            else deep[0] = whole[0];
            for (int q = 0; q < depths_of(taps); q++) store(to + q * apart + x * wide + i, deep[q]);
        }
    }
}

/* Transform the rows of an image that a step needs, from `start` on and zero outside, along the depth, to the channels
 * of its strips from `at` on. */
static void spread(const Shape *s, Step step, const Image *image, int64_t at, int64_t start, Room room) {
    int64_t c = image->c, wide = channels(s), apart = depth_in(s);
    for (int64_t each = 0; each < step.units; each++) {
        int64_t unit = step.unit + each, sample = unit / units_of(s);
        int64_t first = unit % units_of(s) * planes_of(s) - s->taps / 2;
        const float *factors = image->factors ? image->factors + sample * 3 * c : NULL;
        for (int64_t y = start; y < TILE * (step.top + step.strip) + PATCH - TILE - 1; y++) {
            const float *planes[PATCH];
            float *row = room.in + each * depths(s) * apart + (y + 1) % rows_in(s) * row_in(s) + at, *to = row + wide;
            for (int q = 0; q < depths(s); q++) {
                int64_t plane = first + q;
                int is_inside = y >= 0 && y < s->h && plane >= 0 && plane < s->d;
                planes[q] = is_inside ? image->values + ((sample * s->d + plane) * s->h + y) * s->w * c : NULL;
                for (int64_t x = 0; x < row_in(s) / wide; x += x ? 1 : s->w + 1) { /* before and after the row */
                    memset(row + q * apart + x * wide, 0, sizeof(float) * c);
                }
            }
            if (s->taps == 1) spread_row(1, planes, factors, image->slope, s->w, c, to, wide, apart);
            else if (factors) spread_row(3, planes, factors, image->slope, s->w, c, to, wide, apart);
            else spread_row(3, planes, NULL, 1, s->w, c, to, wide, apart);
        }
    }
}

/* The other way for a row: depths (w, c) that lie `apart` to `count` planes (w, c). */
INLINE void gather_row(
    int64_t taps, const float *from, int64_t apart, int64_t w, int64_t c, const float *bias, float *const *planes,
    int64_t count
) {
    for (int64_t x = 0; x < w; x++) {
        for (int64_t i = 0; i < c; i += LANES) {
            Lanes deep[PATCH], whole[TILE], constant = bias ? load(bias + i) : (Lanes){0};
            for (int q = 0; q < depths_of(taps); q++) deep[q] = load(from + q * apart + x * c + i);
            if (taps == 3) transform_output(deep, whole, 1);
            else whole[0] = deep[0];
            for (int64_t q = 0; q < count; q++) store(planes[q] + x * c + i, whole[q] + constant);
        }
    }
}

/* Transform a step's strips back along the depth and write what lies in the image; with `records` (n, units, h, record)
 * a record of each row of a unit, too. */
static void gather(const Shape *s, Step step, const float *bias, Room room, float *out, float *records) {
    for (int64_t each = 0; each < step.units; each++) {
        int64_t unit = step.unit + each, sample = unit / units_of(s), first = unit % units_of(s) * planes_of(s);
        int64_t count = least(planes_of(s), s->d - first);
        const float *from = room.out + each * depths(s) * depth_out(s);
        for (int64_t y = TILE * step.top; y < least(TILE * (step.top + step.strip), s->h); y++, from += row_out(s)) {
            float *planes[TILE];
            for (int q = 0; q < count; q++) planes[q] = out + ((sample * s->d + first + q) * s->h + y) * s->w * s->out;
            if (s->taps == 1) gather_row(1, from, 0, s->w, s->out, bias, planes, 1);
            else if (count == TILE) gather_row(3, from, depth_out(s), s->w, s->out, bias, planes, TILE);
            else gather_row(3, from, depth_out(s), s->w, s->out, bias, planes, count);
            if (!records) continue;
            float *to = records + (unit * s->h + y) * record(s->out);
            moments((const void *const *)planes, count, 0, s->w, s->out, to, 0);
        }
    }
}

/* Transform a patch, one vector at each place of its rows, to points that lie `apart`; the next column is `columns`
 * floats away. */
INLINE void transform_patch(const float *const *rows, int64_t at, int64_t columns, float *to, int64_t apart) {
    Lanes half[POINTS];
#pragma GCC unroll 1
    for (int j = 0; j < PATCH; j++, at += columns) {
        Lanes column[PATCH];
        for (int i = 0; i < PATCH; i++) column[i] = load(rows[i] + at);
        transform_input(column, half + j, PATCH);
    }
#pragma GCC unroll 1
    for (int i = 0; i < PATCH; i++, to += PATCH * apart) {
        Lanes row[PATCH];
        transform_input(half + PATCH * i, row, 1);
        for (int j = 0; j < PATCH; j++) store(to + j * apart, row[j]);
    }
}

/* The other way: points that lie `apart` to a tile. */
INLINE void transform_tile(const float *from, int64_t apart, float *to, int64_t rows, int64_t columns) {
    Lanes half[TILE * PATCH];
#pragma GCC unroll 1
    for (int j = 0; j < PATCH; j++) {
        Lanes column[PATCH];
        for (int i = 0; i < PATCH; i++) column[i] = load(from + (PATCH * i + j) * apart);
        transform_output(column, half + j, PATCH);
    }
#pragma GCC unroll 1
    for (int i = 0; i < TILE; i++) {
        Lanes row[TILE];
        transform_output(half + PATCH * i, row, 1);
        for (int j = 0; j < TILE; j++) store(to + i * rows + j * columns, row[j]);
    }
}

/* Convolve one depth of a step's strips by its transformed weights. */
static void convolve_depth(const Shape *s, Step step, int64_t depth, const float *weights, Room room) {
    int64_t c = channels(s), out = s->out, tile = 0;
    for (int64_t unit = 0; unit < step.units; unit++) {
        const float *strip = room.in + (unit * depths(s) + depth) * depth_in(s);
        for (int64_t row = step.top; row < step.top + step.strip; row++) {
            const float *rows[PATCH];
            for (int i = 0; i < PATCH; i++) rows[i] = strip + (TILE * row + i) % rows_in(s) * row_in(s);
            for (int64_t x = 0; x < across(s); x++, tile++) {
                float *to = room.points + tile * c;
                for (int64_t i = 0; i < c; i += LANES) transform_patch(rows, TILE * x * c + i, c, to + i, apart_in(s));
            }
        }
    }
    for (int64_t i = 0; i < POINTS; i++, weights += c * out + STAGGER) {
        multiply(room.points + i * apart_in(s), tile, c, weights, out, room.products + i * apart_out(s));
    }
    tile = 0;
    for (int64_t unit = 0; unit < step.units; unit++) {
        float *strip = room.out + (unit * depths(s) + depth) * depth_out(s);
        for (int64_t row = 0; row < step.strip; row++) {
            for (int64_t x = 0; x < across(s); x++, tile++) {
                const float *from = room.products + tile * out;
                float *to = strip + TILE * (row * row_out(s) + x * out);
                for (int64_t i = 0; i < out; i += LANES) {
                    transform_tile(from + i, apart_out(s), to + i, row_out(s), out);
                }
            }
        }
    }
}

/* Convolve two images, concatenated along their channels, with padding that keeps the shape; jobs as in Shape.
 * Arguments: Shape; values, factors or none, and slope of each image; transformed weights, bias or none, output; records
 * of its moments or none. */
API void segwright_convolve(const Argument *arguments, float *work, int64_t *next) {
    const Shape *s = arguments[0].array;
    Image first = {arguments[1].array, s->first, arguments[2].array, arguments[3].real};
    Image second = {arguments[4].array, s->second, arguments[5].array, arguments[6].real};
    const float *points = arguments[7].array, *bias = arguments[8].array;
    float *out = arguments[9].array, *records = arguments[10].array;
    int64_t units = s->n * units_of(s), lengths = parts(down(s), s->length);
    Room room = room_of(s, work);
    for (int64_t job; (job = take(next)) < parts(units, s->units) * lengths;) {
        int64_t unit = job / lengths * s->units, begin = job % lengths * s->length;
        int64_t end = least(begin + s->length, down(s));
        for (int64_t top = begin; top < end; top += s->strip) {
            Step step = {unit, least(s->units, units - unit), top, least(s->strip, end - top)};
            int64_t row = TILE * top + (top == begin ? -1 : PATCH - TILE - 1); /* the first that is not there yet */
            spread(s, step, &first, 0, row, room);
            if (s->second) spread(s, step, &second, s->first, row, room);
            for (int64_t depth = 0; depth < depths(s); depth++) {
                convolve_depth(s, step, depth, points + depth * POINTS * (channels(s) * s->out + STAGGER), room);
            }
            gather(s, step, bias, room, out, records);
        }
    }
}
