/* Convolutions by Winograd's minimal filtering, float32.
 *
 * Winograd's F(4, 3) takes 6 multiplications for 4 outputs along an axis where the direct way takes 12 (Lavin & Gray
 * 2016, "Fast algorithms for convolutional neural networks", arXiv:1509.09308). It is applied to tiles of 4x4 in planes
 * and, with three taps, to groups of four planes. Blocks of tiles are transformed, multiplied and transformed back
 * while they are in the cache.
 */
#include "native.h"

enum {
    COLUMNS = 16,    /* output channels in registers: two vectors */
    ROWS = 6,        /* tiles in registers: 6 x 2 sums, 2 weights and 1 input fill 15 of 16 registers */
    TILE = 4,        /* outputs of a tile along each axis of the plane */
    PATCH = 6,       /* inputs that they need */
    POINTS = 36,     /* multiplications per tile, input and output channel */
    AHEAD = 1024,    /* floats of weights that are asked for before they are needed */
    STAGGER = 16,    /* floats between the arrays of two points, so that they do not meet in the same cache lines */
};

/* Places from `first` until before `stop`. */
typedef struct {
    int64_t first, stop;
} Span;

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
INLINE int64_t group_of(int64_t taps) { return taps == 3 ? TILE : 1; } /* planes that are computed together */
INLINE int64_t weights_apart(int64_t taps, int64_t in, int64_t out) { return depths_of(taps) * in * out + STAGGER; }

/* Transform weights (taps, 3, 3, in, out) to POINTS times (depths, out / COLUMNS, in, COLUMNS); a job is COLUMNS.
 * Arguments: weights, taps, in, out, points. */
API void segwright_weights(const Argument *arguments, float *work, int64_t *next) {
    const float *weight = arguments[0].array;
    int64_t taps = arguments[1].whole, in = arguments[2].whole, out = arguments[3].whole;
    float *points = arguments[4].array;
    int64_t plane = in * out, apart = weights_apart(taps, in, out);
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
                for (int64_t q = 0; q < depths_of(taps); q++) store(to + i * apart + q * plane + each, deep[q]);
            }
        }
    }
}

/* Ask for rows of `floats` floats, the next one `apart`, that are needed soon. The processor foresees the rows of one
 * plane, but not that the same rows of the plane after it come next. */
INLINE void prefetch(const float *from, int64_t rows, int64_t apart, int64_t floats) {
    for (const float *row = from; rows > 0; rows--, row += apart) {
        for (int64_t i = 0; i < floats; i += 2 * LANES) __builtin_prefetch(row + i, 0, 2);
    }
}

/* Transform a patch, one vector at each place, zero outside the rows and columns that are `seen` of it, to points that
 * lie `apart`; the next row is `rows` floats away, the next column `columns`. */
INLINE void transform_patch(
    const float *from, int64_t rows, int64_t columns, Span seen_rows, Span seen_columns, float *to, int64_t apart
) {
    Lanes half[POINTS];
#pragma GCC unroll 1
    for (int j = 0; j < PATCH; j++, from += columns) {
        Lanes column[PATCH] = {0};
        if (j >= seen_columns.first && j < seen_columns.stop) {
            for (int i = 0; i < PATCH; i++) {
                if (i >= seen_rows.first && i < seen_rows.stop) column[i] = load(from + i * rows);
            }
        }
        transform_input(column, half + j, PATCH);
    }
#pragma GCC unroll 1
    for (int i = 0; i < PATCH; i++, to += PATCH * apart) {
        Lanes row[PATCH];
        transform_input(half + PATCH * i, row, 1);
        for (int j = 0; j < PATCH; j++) store(to + j * apart, row[j]);
    }
}

/* Transform the patch at (y, x) of a plane (h, w, c), zero outside, to points that lie `apart`; `is_last` of its image
 * is a plane that none follows. */
static void input_tile(
    const float *plane, int is_last, int64_t h, int64_t w, int64_t c, int64_t y, int64_t x, float *to, int64_t apart
) {
    Span rows = {y < 0, least(PATCH, h - y)}, columns = {x < 0, least(PATCH, w - x)};
    const float *corner = plane + (y * w + x) * c;
    if (!is_last) prefetch(corner + ((h + rows.first) * w + 1) * c, rows.stop - rows.first, w * c, TILE * c);
    for (int64_t first = 0; first < c; first += LANES) {
        transform_patch(corner + first, w * c, c, rows, columns, to + first, apart);
    }
}

/* Transform points that lie `apart` back to the tile at (y, x) of a plane (h, w, c), cut at its border. */
static void output_tile(
    const float *from, int64_t apart, const float *bias, float *plane, int is_last, int64_t h, int64_t w, int64_t c,
    int64_t y, int64_t x
) {
    int64_t height = least(TILE, h - y), width = least(TILE, w - x);
    float *corner = plane + (y * w + x) * c;
    if (!is_last) prefetch(corner + h * w * c, height, w * c, width * c);
    for (int64_t first = 0; first < c; first += LANES, corner += LANES) {
        Lanes half[TILE * PATCH], constant = bias ? load(bias + first) : (Lanes){0};
#pragma GCC unroll 1
        for (int j = 0; j < PATCH; j++) {
            Lanes column[PATCH];
            for (int i = 0; i < PATCH; i++) column[i] = load(from + (PATCH * i + j) * apart + first);
            transform_output(column, half + j, PATCH);
        }
        for (int i = 0; i < height; i++) {
            Lanes row[TILE];
            transform_output(half + PATCH * i, row, 1);
            for (int j = 0; j < width; j++) store(corner + (i * w + j) * c, row[j] + constant);
        }
    }
}

/* Multiply `rows` rows of `a` (in floats each) by weights (in, COLUMNS); `rows` has to be known to the compiler. */
INLINE void multiply_rows(int rows, const float *a, int64_t in, const float *weights, float *to, int64_t to_stride) {
    Lanes sums[ROWS][2];
    for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = (Lanes){0};
#pragma GCC unroll 2
    for (int64_t k = 0; k < in; k++, weights += COLUMNS) {
        Lanes low = load(weights), high = load(weights + LANES);
        __builtin_prefetch(weights + AHEAD);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            Lanes value = a[i * in + k] - (Lanes){0}; /* in all lanes */
            sums[i][0] += value * low;
            sums[i][1] += value * high;
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        store(to + i * to_stride, sums[i][0]);
        store(to + i * to_stride + LANES, sums[i][1]);
    }
}

/* Multiply `a` (rows, in) by weights (out / COLUMNS, in, COLUMNS) to `to` (rows, out). */
static void multiply(const float *a, int64_t rows, int64_t in, const float *weights, int64_t out, float *to) {
    for (int64_t c = 0; c < out; c += COLUMNS, weights += in * COLUMNS) {
        int64_t row = 0;
        for (; row + ROWS <= rows; row += ROWS) multiply_rows(ROWS, a + row * in, in, weights, to + row * out + c, out);
        switch (rows - row) {
        case 5: multiply_rows(5, a + row * in, in, weights, to + row * out + c, out); break;
        case 4: multiply_rows(4, a + row * in, in, weights, to + row * out + c, out); break;
        case 3: multiply_rows(3, a + row * in, in, weights, to + row * out + c, out); break;
        case 2: multiply_rows(2, a + row * in, in, weights, to + row * out + c, out); break;
        case 1: multiply_rows(1, a + row * in, in, weights, to + row * out + c, out); break;
        }
    }
}

/* Along the depth: one point of the tiles (tiles, POINTS, c) of PATCH planes to PATCH arrays (tiles, c) that lie
 * `apart`. */
static void spread_depth(const float *const *planes, int64_t tiles, int64_t c, float *to, int64_t apart) {
    for (int64_t tile = 0; tile < tiles; tile++, to += c) {
        for (int64_t i = 0; i < c; i += LANES) {
            Lanes whole[PATCH], deep[PATCH];
            for (int q = 0; q < PATCH; q++) whole[q] = load(planes[q] + tile * POINTS * c + i);
            transform_input(whole, deep, 1);
            for (int q = 0; q < PATCH; q++) store(to + q * apart + i, deep[q]);
        }
    }
}

/* Back from PATCH arrays (tiles, c) that lie `apart` to one point of the tiles (tiles, POINTS, c) of TILE planes. */
static void gather_depth(const float *from, int64_t apart, int64_t tiles, int64_t c, float *to) {
    for (int64_t tile = 0; tile < tiles; tile++, from += c, to += POINTS * c) {
        for (int64_t i = 0; i < c; i += LANES) {
            Lanes deep[PATCH], whole[TILE];
            for (int q = 0; q < PATCH; q++) deep[q] = load(from + q * apart + i);
            transform_output(deep, whole, 1);
            for (int q = 0; q < TILE; q++) store(to + q * tiles * POINTS * c + i, whole[q]);
        }
    }
}

/* How the work on one image is cut: `strip` rows of tiles and `depth` planes at a time. */
typedef struct {
    int64_t n, d, h, w;      /* of both inputs and of the output */
    int64_t first, second;   /* channels of the two inputs, the second may have none */
    int64_t out;             /* channels of the output */
    int64_t taps;            /* along the depth: 1 or 3 */
    int64_t strip, depth;    /* the depth is a multiple of group_of(taps) */
} Shape;

INLINE int64_t across(const Shape *s) { return parts(s->w, TILE); }
INLINE int64_t channels(const Shape *s) { return s->first + s->second; }
INLINE int64_t overlap(const Shape *s) { return s->taps - 1; }
INLINE int64_t tiles_of_plane(const Shape *s) { return s->strip * across(s); }
INLINE int64_t tiles_of_block(const Shape *s) { return s->depth * tiles_of_plane(s); }
INLINE int64_t ring(const Shape *s) { return s->depth + overlap(s); } /* planes of inputs that are held */
INLINE int64_t deep_tiles(const Shape *s) { return s->taps == 3 ? PATCH * tiles_of_block(s) / TILE : 0; }

/* Where the transformed tiles of a block lie: how far from each other are points, and tiles. */
typedef struct {
    int64_t point, tile, size;
} Layout;

/* With three taps the points of a tile lie together, for they are written at once and read along the depth anyway; with
 * one tap the tiles of a point do, as they are multiplied. */
INLINE Layout layout(const Shape *s, int64_t tiles, int64_t c) {
    int64_t point = s->taps == 3 ? c : tiles * c + STAGGER, tile = s->taps == 3 ? POINTS * c : c;
    return (Layout){point, tile, POINTS * (tiles * c + STAGGER)};
}

INLINE Layout input_layout(const Shape *s) { return layout(s, ring(s) * tiles_of_plane(s), channels(s)); }
INLINE Layout product_layout(const Shape *s) { return layout(s, tiles_of_block(s), s->out); }

/* Return how many floats of `work` each thread needs. */
API int64_t segwright_convolve_work(const Shape *s) {
    return input_layout(s).size + product_layout(s).size + deep_tiles(s) * (channels(s) + s->out);
}

/* Return how many planes the block from `z` on has, some more where a group of them is not whole. */
INLINE int64_t depth_from(const Shape *s, int64_t z) {
    return least(s->depth, parts(s->d - z, group_of(s->taps)) * group_of(s->taps));
}

/* Transform the tiles from row `top` on, in the planes that the outputs of the block from `z` on need, to the ring
 * `input` of planes; the first of them are the last ones of the block before. Plane z - 1 has place z of the ring, or z
 * itself with one tap. */
static void transform_block(
    const Shape *s, const float *first, const float *second, int64_t sample, int64_t z, int64_t top, float *input
) {
    Layout lies = input_layout(s);
    int64_t tiles = tiles_of_plane(s), stop = z + depth_from(s, z) + overlap(s);
    for (int64_t place = z ? z + overlap(s) : 0; place < stop; place++) {
        int64_t plane = place - s->taps / 2, at = (sample * s->d + plane) * s->h * s->w;
        int is_last = plane == s->d - 1;
        float *to = input + place % ring(s) * tiles * lies.tile;
        if (plane < 0 || plane >= s->d) { /* of three taps */
            memset(to, 0, sizeof(float) * tiles * lies.tile);
            continue;
        }
        for (int64_t tile = 0; tile < tiles; tile++, to += lies.tile) {
            int64_t y = (top + tile / across(s)) * TILE - 1, x = tile % across(s) * TILE - 1;
            input_tile(first + at * s->first, is_last, s->h, s->w, s->first, y, x, to, lies.point);
            if (!s->second) continue;
            input_tile(second + at * s->second, is_last, s->h, s->w, s->second, y, x, to + s->first, lies.point);
        }
    }
}

/* Multiply the tiles of the block from `z` on by the weights, point by point. */
static void multiply_block(
    const Shape *s, const float *input, const float *points, int64_t z, float *deep, float *product
) {
    Layout in = input_layout(s), lies = product_layout(s);
    int64_t c = channels(s), out = s->out, tiles = tiles_of_plane(s), depth = depth_from(s, z);
    int64_t rows = depth / TILE * tiles;
    float *deep_product = deep + deep_tiles(s) * c;
    for (int i = 0; i < POINTS; i++, input += in.point, product += lies.point) {
        const float *weights = points + i * weights_apart(s->taps, c, out);
        if (s->taps == 1) {
            multiply(input, depth * tiles, c, weights, out, product);
            continue;
        }
        for (int64_t plane = 0; plane < depth; plane += TILE) {
            const float *planes[PATCH];
            for (int q = 0; q < PATCH; q++) planes[q] = input + (z + plane + q) % ring(s) * tiles * in.tile;
            spread_depth(planes, tiles, c, deep + plane / TILE * tiles * c, rows * c);
        }
        for (int q = 0; q < PATCH; q++) {
            multiply(deep + q * rows * c, rows, c, weights + q * c * out, out, deep_product + q * rows * out);
        }
        for (int64_t plane = 0; plane < depth; plane += TILE) {
            const float *from = deep_product + plane / TILE * tiles * out;
            gather_depth(from, rows * out, tiles, out, product + plane * tiles * lies.tile);
        }
    }
}

/* Transform the tiles of a block back and write those that lie in the image. */
static void write_block(
    const Shape *s, const float *product, const float *bias, int64_t sample, int64_t z, int64_t top, float *out
) {
    Layout lies = product_layout(s);
    int64_t tiles = tiles_of_plane(s);
    for (int64_t each = 0; each < least(s->depth, s->d - z) * tiles; each++, product += lies.tile) {
        int64_t row = each % tiles / across(s), y = (top + row) * TILE, x = each % across(s) * TILE;
        float *plane = out + (sample * s->d + z + each / tiles) * s->h * s->w * s->out;
        output_tile(product, lies.point, bias, plane, z + each / tiles == s->d - 1, s->h, s->w, s->out, y, x);
    }
}

/* Convolve two images, concatenated along their channels, with padding that keeps the shape; a job is a strip.
 * Arguments: Shape, first image, second image, transformed weights, bias or none, output. */
API void segwright_convolve(const Argument *arguments, float *work, int64_t *next) {
    const Shape *s = arguments[0].array;
    const float *first = arguments[1].array, *second = arguments[2].array;
    const float *points = arguments[3].array, *bias = arguments[4].array;
    float *out = arguments[5].array;
    int64_t down = parts(s->h, TILE), strips = parts(down, s->strip);
    float *input = work, *product = input + input_layout(s).size, *deep = product + product_layout(s).size;
    for (int64_t job; (job = take(next)) < s->n * strips;) {
        int64_t sample = job / strips, top = job % strips * s->strip;
        Shape part = *s;
        part.strip = least(s->strip, down - top);
        for (int64_t z = 0; z < s->d; z += s->depth) {
            transform_block(&part, first, second, sample, z, top, input);
            multiply_block(&part, input, points, z, deep, product);
            write_block(&part, product, bias, sample, z, top, out);
        }
    }
}
