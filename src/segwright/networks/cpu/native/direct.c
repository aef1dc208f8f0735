/* Convolutions that are computed as they are: of few channels, and transposed ones whose kernel is their stride. */
#include "multiply.h"
#include "norm.h"

enum { TAPS = 3, MOST_LINES = TAPS * TAPS };

/* Convolve `rows` voxels, COLUMNS outputs of each: sum the products of TAPS * c floats of each of `lines`, which are lines
 * of the image with a voxel more on either side, from the voxel before the first on. */
INLINE void convolve_rows(
    int rows, const float *const *lines, int64_t count, int64_t at, int64_t c, const float *weights, const float *bias,
    float *to, int64_t out
) {
    Lanes sums[ROWS][2];
    begin_sums(rows, sums, bias);
    for (int64_t line = 0; line < count; line++) {
        for (int64_t k = 0; k < TAPS * c; k++, weights += COLUMNS) {
            add_to_sums(rows, sums, lines[line] + at + k, c, weights);
        }
    }
    write_sums(rows, sums, to, out);
}

/* An image of few channels and what its convolution makes of it; a job is `height` lines of a plane. */
typedef struct {
    int64_t n, d, h, w, c, out, deep, height; /* `deep`: taps along the depth, 1 or 3 */
} Few;

/* Copy the lines of the image that a line of the output needs, with a voxel of zeros more on either side, to `work`. */
static void copy_lines(const Few *f, const float *image, int64_t sample, int64_t z, int64_t y, float *work) {
    int64_t line = f->w * f->c;
    for (int64_t dz = z - f->deep / 2; dz <= z + f->deep / 2; dz++) {
        for (int64_t dy = y - 1; dy <= y + 1; dy++, work += line + 2 * f->c) {
            int is_inside = dz >= 0 && dz < f->d && dy >= 0 && dy < f->h;
            if (is_inside) memcpy(work + f->c, image + ((sample * f->d + dz) * f->h + dy) * line, sizeof(float) * line);
            else memset(work + f->c, 0, sizeof(float) * line);
        }
    }
}

/* Arguments: Few; image (n, d, h, w, c); weights (out / COLUMNS, deep, TAPS, TAPS, c, COLUMNS), bias or none, output
 * (n, d, h, w, out); records (n, d, jobs of a plane, record) of its moments, or none. `work` holds deep * TAPS lines. */
API void segwright_few(const Argument *arguments, float *work, int64_t *next) {
    const Few *f = arguments[0].array;
    const float *image = arguments[1].array, *weights = arguments[2].array, *bias = arguments[3].array;
    float *out = arguments[4].array, *records = arguments[5].array;
    int64_t count = f->deep * TAPS, wide = (f->w + 2) * f->c, heights = parts(f->h, f->height);
    const float *lines[MOST_LINES];
    for (int64_t line = 0; line < count; line++) lines[line] = work + line * wide;
    memset(work, 0, sizeof(float) * count * wide);
    for (int64_t job; (job = take(next)) < f->n * f->d * heights;) {
        int64_t plane = job / heights, top = job % heights * f->height, end = least(top + f->height, f->h);
        float *first = out + (plane * f->h + top) * f->w * f->out, *to = first;
        for (int64_t y = top; y < end; y++, to += f->w * f->out) {
            copy_lines(f, image, plane / f->d, plane % f->d, y, work);
            for (int64_t o = 0; o < f->out; o += COLUMNS) {
                const float *g = weights + o * count * TAPS * f->c, *b = bias ? bias + o : NULL;
#define DO(rows) convolve_rows(rows, lines, count, x * f->c, f->c, g, b, to + x * f->out + o, f->out)
                BY_ROWS(x, f->w, DO)
#undef DO
            }
        }
        if (!records) continue;
        moments((const void *const *)&first, 1, 0, (end - top) * f->w, f->out, records + job * record(f->out), 0);
    }
}

/* Up-sample: each voxel becomes as many as the kernel has places, none of which another one reaches. A job is a line.
 * Arguments: image (n, d, h, w, c), its lines n * d * h, h, w, c; channels of the output; stride along the three axes;
 * weights (places, out / COLUMNS, c, COLUMNS), bias or none, output. */
API void segwright_upsample(const Argument *arguments, float *work, int64_t *next) {
    const float *image = arguments[0].array, *weights = arguments[9].array, *bias = arguments[10].array;
    int64_t lines = arguments[1].whole, h = arguments[2].whole, w = arguments[3].whole, c = arguments[4].whole;
    int64_t out = arguments[5].whole, deep = arguments[6].whole, down = arguments[7].whole, across = arguments[8].whole;
    float *to = arguments[11].array;
    (void)work;
    for (int64_t line; (line = take(next)) < lines;) {
        int64_t plane = line / h * deep, y = line % h * down;
        for (int64_t place = 0; place < deep * down * across; place++) {
            int64_t dz = place / across / down, dy = place / across % down, dx = place % across;
            float *first = to + (((plane + dz) * h * down + y + dy) * w * across + dx) * out;
            multiply(image + line * w * c, w, c, weights + place * c * out, out, bias, first, across * out);
        }
    }
}
