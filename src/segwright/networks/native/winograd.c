/* Convolutions by Winograd's minimal filtering, float32.
 *
 * Winograd's F(4x4, 3x3) takes 36 multiplications for 4x4 outputs where the direct way takes 144 (Lavin & Gray 2016,
 * "Fast algorithms for convolutional neural networks", arXiv:1509.09308); it is applied in planes, and F(2, 3), 4
 * multiplications instead of 6, along the depth. Blocks of tiles are transformed, multiplied and transformed back while
 * they are in the cache.
 */
#include "native.h"

enum {
    COLUMNS = 16,    /* output channels in registers: two vectors */
    ROWS = 6,        /* tiles in registers: 6 x 2 sums, 2 weights and 1 input fill 15 of 16 registers */
    TILE = 4,        /* outputs of a tile along each axis of the plane */
    PATCH = 6,       /* inputs that they need */
    POINTS = 36,     /* multiplications per tile, input and output channel */
    DEPTHS = 4,      /* the same along the depth, for two outputs of three taps */
    STAGGER = 16,    /* floats between the arrays of two points, so that they do not meet in the same cache lines */
};

/* The three matrices of F(4, 3) with the points 0, 1, -1, 2, -2 and infinity, along one axis. */

INLINE void transform_weight(Lanes g0, Lanes g1, Lanes g2, Lanes *out, int64_t stride) {
    Lanes outer = (g0 + g2) / 6.0f, middle = g1 / 6.0f, wide = g0 / 24.0f + g2 / 6.0f, twice = g1 / 12.0f;
    out[0] = g0 / 4.0f;
    out[stride] = -outer - middle;
    out[2 * stride] = middle - outer;
    out[3 * stride] = wide + twice;
    out[4 * stride] = wide - twice;
    out[5 * stride] = g2;
}

INLINE void transform_input(const Lanes *d, Lanes *out, int64_t stride) {
    Lanes d1 = d[1], d2 = d[2], d3 = d[3], d4 = d[4];
    Lanes even = d4 - 4.0f * d2, odd = d3 - 4.0f * d1, inner = d4 - d2, twice = 2.0f * (d3 - d1);
    out[0] = 4.0f * d[0] - 5.0f * d2 + d4;
    out[stride] = even + odd;
    out[2 * stride] = even - odd;
    out[3 * stride] = inner + twice;
    out[4 * stride] = inner - twice;
    out[5 * stride] = 4.0f * d1 - 5.0f * d3 + d[5];
}

INLINE void transform_output(const Lanes *m, Lanes *out, int64_t stride) {
    Lanes near = m[1] + m[2], near_odd = m[1] - m[2], far = m[3] + m[4], far_odd = m[3] - m[4];
    out[0] = m[0] + near + far;
    out[stride] = near_odd + 2.0f * far_odd;
    out[2 * stride] = near + 4.0f * far;
    out[3 * stride] = near_odd + 8.0f * far_odd + m[5];
}

/* The matrix of F(2, 3) for weights along the depth, with the points 0, 1, -1 and infinity. */
INLINE void transform_taps(Lanes g0, Lanes g1, Lanes g2, Lanes *out) {
    Lanes even = 0.5f * (g0 + g2), odd = 0.5f * g1;
    out[0] = g0;
    out[1] = even + odd;
    out[2] = even - odd;
    out[3] = g2;
}

INLINE int64_t depths_of(int64_t taps) { return taps == 3 ? DEPTHS : 1; }
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
                Lanes deep[DEPTHS] = {whole[0][i]};
                if (taps == 3) transform_taps(whole[0][i], whole[1][i], whole[2][i], deep);
                for (int64_t q = 0; q < depths_of(taps); q++) store(to + i * apart + q * plane + each, deep[q]);
            }
        }
    }
}

/* Transform a patch, one vector at each place, to POINTS arrays that lie `apart`; the next row is `rows` floats away,
 * the next column `columns`. */
INLINE void transform_patch(const float *from, int64_t rows, int64_t columns, float *to, int64_t apart) {
    Lanes half[POINTS];
    for (int j = 0; j < PATCH; j++, from += columns) {
        Lanes column[PATCH];
        for (int i = 0; i < PATCH; i++) column[i] = load(from + i * rows);
        transform_input(column, half + j, PATCH);
    }
    for (int i = 0; i < PATCH; i++, to += PATCH * apart) {
        Lanes row[PATCH];
        transform_input(half + PATCH * i, row, 1);
        for (int j = 0; j < PATCH; j++) store(to + j * apart, row[j]);
    }
}

/* Transform the patch at (y, x) of a plane (h, w, c), zero outside, to POINTS arrays that lie `apart`. */
static void input_tile(
    const float *plane, int64_t h, int64_t w, int64_t c, int64_t y, int64_t x, float *to, int64_t apart
) {
    const float *corner = plane + (y * w + x) * c;
    if (y >= 0 && x >= 0 && y + PATCH <= h && x + PATCH <= w) {
        for (int64_t first = 0; first < c; first += LANES) transform_patch(corner + first, w * c, c, to + first, apart);
        return;
    }
    for (int64_t first = 0; first < c; first += LANES) {
        Lanes seen[POINTS] = {0};
        for (int64_t i = y < 0; i < least(PATCH, h - y); i++) {
            for (int64_t j = x < 0; j < least(PATCH, w - x); j++) {
                seen[PATCH * i + j] = load(corner + (i * w + j) * c + first);
            }
        }
        transform_patch((const float *)seen, PATCH * LANES, LANES, to + first, apart);
    }
}

/* Transform POINTS arrays that lie `apart` back to the tile at (y, x) of a plane (h, w, c), cut at its border. */
static void output_tile(
    const float *from, int64_t apart, const float *bias, float *plane, int64_t h, int64_t w, int64_t c, int64_t y,
    int64_t x
) {
    int64_t height = least(TILE, h - y), width = least(TILE, w - x);
    float *corner = plane + (y * w + x) * c;
    for (int64_t first = 0; first < c; first += LANES, corner += LANES) {
        Lanes half[TILE * PATCH], constant = bias ? load(bias + first) : (Lanes){0};
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
    for (int64_t k = 0; k < in; k++, weights += COLUMNS) {
        Lanes low = load(weights), high = load(weights + LANES);
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

/* Along the depth: four planes (size) from plane `first` of a ring on to DEPTHS arrays that lie `apart`. */
static void spread_depth(const float *ring, int64_t planes, int64_t first, int64_t size, float *to, int64_t apart) {
    const float *plane[DEPTHS];
    for (int q = 0; q < DEPTHS; q++) plane[q] = ring + (first + q) % planes * size;
    for (int64_t i = 0; i < size; i += LANES) {
        Lanes d0 = load(plane[0] + i), d1 = load(plane[1] + i), d2 = load(plane[2] + i), d3 = load(plane[3] + i);
        store(to + i, d0 - d2);
        store(to + apart + i, d1 + d2);
        store(to + 2 * apart + i, d2 - d1);
        store(to + 3 * apart + i, d1 - d3);
    }
}

/* Back from DEPTHS arrays (pairs, size) to two planes (size) for each pair. */
static void gather_depth(const float *from, int64_t pairs, int64_t size, float *to) {
    for (int64_t pair = 0; pair < pairs; pair++, from += size, to += 2 * size) {
        for (int64_t i = 0; i < size; i += LANES) {
            Lanes m1 = load(from + pairs * size + i), m2 = load(from + 2 * pairs * size + i);
            store(to + i, load(from + i) + m1 + m2);
            store(to + size + i, m1 - m2 - load(from + 3 * pairs * size + i));
        }
    }
}

/* How the work on one image is cut: `strip` rows of tiles and `depth` planes at a time. */
typedef struct {
    int64_t n, d, h, w;      /* of both inputs and of the output */
    int64_t first, second;   /* channels of the two inputs, the second may have none */
    int64_t out;             /* channels of the output */
    int64_t taps;            /* along the depth: 1 or 3 */
    int64_t strip, depth;    /* the depth is even where there are three taps */
} Shape;

INLINE int64_t across(const Shape *s) { return parts(s->w, TILE); }
INLINE int64_t channels(const Shape *s) { return s->first + s->second; }
INLINE int64_t overlap(const Shape *s) { return s->taps - 1; }
INLINE int64_t tiles_of_plane(const Shape *s) { return s->strip * across(s); }
INLINE int64_t tiles_of_block(const Shape *s) { return s->depth * tiles_of_plane(s); }
INLINE int64_t ring(const Shape *s) { return s->depth + overlap(s); } /* planes of inputs that are held */
INLINE int64_t input_apart(const Shape *s) { return ring(s) * tiles_of_plane(s) * channels(s) + STAGGER; }
INLINE int64_t product_apart(const Shape *s) { return tiles_of_block(s) * s->out + STAGGER; }
INLINE int64_t deep_tiles(const Shape *s) { return s->taps == 3 ? DEPTHS * tiles_of_block(s) / 2 : 0; }

/* Return how many floats of `work` each thread needs. */
API int64_t segwright_convolve_work(const Shape *s) {
    return POINTS * (input_apart(s) + product_apart(s)) + deep_tiles(s) * (channels(s) + s->out);
}

/* Return how many planes the block from `z` on has, one more where a pair of them is not whole. */
INLINE int64_t depth_from(const Shape *s, int64_t z) {
    return least(s->depth, s->taps == 3 ? parts(s->d - z, 2) * 2 : s->d - z);
}

/* Transform the tiles from row `top` on, in the planes that the outputs of the block from `z` on need; the first of
 * them are the last ones of the block before. Plane z - 1 has place z of the ring, or z itself with one tap. */
static void transform_block(
    const Shape *s, const float *first, const float *second, int64_t sample, int64_t z, int64_t top, float *input
) {
    int64_t tiles = tiles_of_plane(s), c = channels(s), apart = input_apart(s);
    int64_t stop = z + depth_from(s, z) + overlap(s);
    for (int64_t place = z ? z + overlap(s) : 0; place < stop; place++) {
        int64_t plane = place - s->taps / 2, at = (sample * s->d + plane) * s->h * s->w;
        float *to = input + place % ring(s) * tiles * c;
        if (plane < 0 || plane >= s->d) {
            for (int i = 0; i < POINTS; i++) memset(to + i * apart, 0, sizeof(float) * tiles * c);
            continue;
        }
        for (int64_t tile = 0; tile < tiles; tile++, to += c) {
            int64_t y = (top + tile / across(s)) * TILE - 1, x = tile % across(s) * TILE - 1;
            input_tile(first + at * s->first, s->h, s->w, s->first, y, x, to, apart);
            if (s->second) input_tile(second + at * s->second, s->h, s->w, s->second, y, x, to + s->first, apart);
        }
    }
}

/* Multiply the tiles of the block from `z` on by the weights, point by point. */
static void multiply_block(
    const Shape *s, const float *input, const float *points, int64_t z, float *deep, float *product
) {
    int64_t c = channels(s), tiles = tiles_of_plane(s), depth = depth_from(s, z), pairs = depth / 2;
    int64_t rows = pairs * tiles;
    float *deep_product = deep + deep_tiles(s) * c;
    for (int i = 0; i < POINTS; i++) {
        const float *from = input + i * input_apart(s), *weights = points + i * weights_apart(s->taps, c, s->out);
        float *to = product + i * product_apart(s);
        if (s->taps == 1) {
            multiply(from, depth * tiles, c, weights, s->out, to);
            continue;
        }
        for (int64_t pair = 0; pair < pairs; pair++) {
            spread_depth(from, ring(s), z + 2 * pair, tiles * c, deep + pair * tiles * c, rows * c);
        }
        for (int q = 0; q < DEPTHS; q++) {
            multiply(deep + q * rows * c, rows, c, weights + q * c * s->out, s->out, deep_product + q * rows * s->out);
        }
        gather_depth(deep_product, pairs, tiles * s->out, to);
    }
}

/* Transform the tiles of a block back and write those that lie in the image. */
static void write_block(
    const Shape *s, const float *product, const float *bias, int64_t sample, int64_t z, int64_t top, float *out
) {
    int64_t tiles = tiles_of_plane(s);
    for (int64_t each = 0; each < least(s->depth, s->d - z) * tiles; each++) {
        int64_t row = each % tiles / across(s), y = (top + row) * TILE, x = each % across(s) * TILE;
        float *plane = out + (sample * s->d + z + each / tiles) * s->h * s->w * s->out;
        output_tile(product + each * s->out, product_apart(s), bias, plane, s->h, s->w, s->out, y, x);
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
    float *input = work, *product = input + POINTS * input_apart(s), *deep = product + POINTS * product_apart(s);
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
