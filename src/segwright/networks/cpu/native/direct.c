/* Direct convolutions: of few input channels, and transposed ones with kernel = stride. */
#include "multiply.h"
#include "norm.h"

enum { TAPS = 3, MAX_LINES = TAPS * TAPS };

/* Compute COLUMNS outputs of `rows` voxels: sum the products of TAPS * c floats of each of `lines`, which are lines of the
 * image padded by a voxel on either side. */
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

/* Sizes of an image of few channels and of its convolution; a job is `height` lines of a plane. */
typedef struct {
    int64_t n, d, h, w, c, out, deep, height; /* `deep`: taps along the depth, 1 or 3 */
} Few;

/* Copy the lines of the image that a line of the output needs to `work`, between a voxel of zeros on either side. */
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

/* Arguments: Few; image (n, d, h, w, c); weights (out / COLUMNS, deep, TAPS, TAPS, c, COLUMNS), bias or NULL, output
 * (n, d, h, w, out); records (n, d, jobs of a plane, record) of its moments, or NULL. `work` holds deep * TAPS lines. */
static void few_kernel(const Argument *arguments, float *work, int64_t *next) {
    const Few *f = arguments[0].array;
    const float *image = arguments[1].array, *weights = arguments[2].array, *bias = arguments[3].array;
    float *out = arguments[4].array, *records = arguments[5].array;
    int64_t count = f->deep * TAPS, wide = (f->w + 2) * f->c, heights = parts(f->h, f->height);
    const float *lines[MAX_LINES];
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

static int64_t few_check(const Argument *arguments, int64_t work_size) {
    const Few *f = arguments[0].array;
    RETURN_UNLESS_OK(check_array(f, sizeof(int64_t)));
    RETURN_UNLESS_OK(check_sizes(sizeof(Few) / sizeof(int64_t), &f->n));
    if (f->deep != 1 && f->deep != TAPS) return BAD_FILTER;
    if (f->out % COLUMNS) return BAD_CHANNELS;
    if (work_size < f->deep * TAPS * (f->w + 2) * f->c) return SMALL_WORK;
    RETURN_UNLESS_OK(check_floats(arguments[1].array));
    RETURN_UNLESS_OK(check_floats(arguments[2].array));
    RETURN_UNLESS_OK(check_optional(arguments[3].array));
    RETURN_UNLESS_OK(check_floats(arguments[4].array));
    RETURN_UNLESS_OK(check_optional(arguments[5].array));
    return OK;
}

API const Entry segwright_few = {few_kernel, few_check, 6};

/* Transposed convolution with kernel = stride: each output voxel depends on one input voxel. A job is a line.
 * Arguments: image (n, d, h, w, c), its lines n * d * h, h, w, c; channels of the output; stride along the three axes;
 * weights (taps, out / COLUMNS, c, COLUMNS), bias or NULL, output. */
static void upsample_kernel(const Argument *arguments, float *work, int64_t *next) {
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

static int64_t upsample_check(const Argument *arguments, int64_t work_size) {
    (void)work_size;
    for (int i = 1; i < 9; i++) RETURN_UNLESS_OK(check_sizes(1, &arguments[i].whole));
    if (arguments[1].whole % arguments[2].whole) return BAD_SIZE;
    if (arguments[4].whole % LANES || arguments[5].whole % COLUMNS) return BAD_CHANNELS;
    RETURN_UNLESS_OK(check_floats(arguments[0].array));
    RETURN_UNLESS_OK(check_floats(arguments[9].array));
    RETURN_UNLESS_OK(check_optional(arguments[10].array));
    RETURN_UNLESS_OK(check_floats(arguments[11].array));
    return OK;
}

API const Entry segwright_upsample = {upsample_kernel, upsample_check, 12};
