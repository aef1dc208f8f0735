/* Convolutions of float32 by Winograd's minimal filtering, with stride 1 or 2.
 *
 * With three taps along the depth the filter is applied there first, to whole rows of voxels: with F(4, 3) six planes
 * become six depths. Each is convolved like a 2D image by tiles of 4x4, and together they give four planes of the output.
 * So only one depth of a block and its weights need to be in the cache.
 */
#include "filters.h"
#include "norm.h"
#include "products.h"

enum {
    GROUPS = KINDS * KINDS, /* of points of a tile; points of a group have the same weights */
    STAGGER = 64 / sizeof(Point), /* points between the arrays of two groups, to avoid conflicts between cache lines */
};

/* Bytes of a transformed input or weight. */
API int64_t segwright_product_bytes(void) { return sizeof(Point); }

/* Whether these are filters along the depth and in the plane. */
INLINE int is_filter(int64_t deep, int64_t flat) {
    return (deep == IDENTITY || deep == STRIDED || deep == FOUR || deep == FIVE) && (flat == FOUR || flat == STRIDED);
}

/* Transform weights (taps, 3, 3) of LANES outputs, `plane` apart, to (GROUPS, kinds along the depth). */
INLINE void transform_weights(int64_t deep, int64_t flat, const float *from, int64_t plane, Lanes (*kinds)[MAX_KINDS]) {
    Lanes whole[3][GROUPS];
    for (int64_t tap = 0; tap < (deep == IDENTITY ? 1 : 3); tap++, from += 9 * plane) {
        Lanes g[9], half[3 * KINDS];
        for (int i = 0; i < 9; i++) g[i] = load(from + i * plane);
        for (int i = 0; i < 3; i++) transform_weight(flat, g[i], g[3 + i], g[6 + i], half + i, 3);
        for (int i = 0; i < KINDS; i++) {
            const Lanes *row = half + 3 * i;
            transform_weight(flat, row[0], row[1], row[2], whole[tap] + KINDS * i, 1);
        }
    }
    for (int i = 0; i < GROUPS; i++) {
        kinds[i][0] = whole[0][i];
        if (deep != IDENTITY) transform_weight(deep, whole[0][i], whole[1][i], whole[2][i], kinds[i], 1);
    }
}

/* Transform weights (taps, 3, 3, in, out) to (kinds along the depth, GROUPS) times (out / COLUMNS, in / INPUTS, COLUMNS,
 * INPUTS), STAGGER apart; a job is COLUMNS. Arguments: weights, in, out, filters along the depth and in the plane, points. */
static void weights_kernel(const Argument *arguments, float *work, int64_t *next) {
    const float *weight = arguments[0].array;
    int64_t in = arguments[1].whole, out = arguments[2].whole, deep = arguments[3].whole;
    int64_t flat = arguments[4].whole == STRIDED ? STRIDED : FOUR;
    Point *points = arguments[5].array;
    int64_t plane = in * out, apart = plane + STAGGER;
    (void)work;
    for (int64_t job; (job = take(next)) < out / COLUMNS;) {
        for (int64_t row = 0; row < in; row += INPUTS) {
            for (int64_t column = 0; column < COLUMNS; column += LANES) {
                const float *from = weight + row * out + job * COLUMNS + column;
                Point *to = points + (job * in + row) * COLUMNS + column;
                Lanes kinds[INPUTS][GROUPS][MAX_KINDS];
                for (int i = 0; i < INPUTS; i++) transform_weights(deep, flat, from + i * out, plane, kinds[i]);
                for (int64_t q = 0; q < kinds_of(deep); q++) {
                    for (int i = 0; i < GROUPS; i++, to += apart) {
                        Lanes inputs[INPUTS];
                        for (int k = 0; k < INPUTS; k++) inputs[k] = kinds[k][i][q];
                        store_weights(to, inputs);
                    }
                }
            }
        }
    }
}

static int64_t weights_check(const Argument *arguments, int64_t work_size) {
    (void)work_size;
    for (int i = 1; i < 3; i++) RETURN_UNLESS_OK(check_sizes(1, &arguments[i].whole));
    if (!is_filter(arguments[3].whole, arguments[4].whole)) return BAD_FILTER;
    if (arguments[1].whole % INPUTS || arguments[2].whole % COLUMNS) return BAD_CHANNELS;
    RETURN_UNLESS_OK(check_floats(arguments[0].array));
    RETURN_UNLESS_OK(check_array(arguments[5].array, sizeof(Point)));
    return OK;
}

API const Entry segwright_weights = {weights_kernel, weights_check, 6};

/* The images and how the work on them is cut: a unit is as many planes of the output as the filter along the depth makes
 * at once; a job is `units` of them and `length` rows of tiles, of which it takes `strip` at a time. */
typedef struct {
    int64_t n, d, h, w;               /* of both inputs */
    int64_t first, second;            /* channels of the two inputs, the second may have none */
    int64_t out, out_d, out_h, out_w; /* channels and size of the output */
    int64_t deep, flat;               /* filters along the depth, and in the plane: FOUR or STRIDED */
    int64_t units, length, strip;
} Shape;

INLINE int64_t planes_of(const Shape *s) { return tile_of(s->deep); } /* of a unit */
INLINE int64_t units_of(const Shape *s) { return parts(s->out_d, planes_of(s)); } /* of a sample */
INLINE int64_t depths(const Shape *s) { return points_of(s->deep); }
INLINE int64_t down(const Shape *s) { return parts(s->out_h, TILE); }
INLINE int64_t across(const Shape *s) { return parts(s->out_w, TILE); }
INLINE int64_t channels(const Shape *s) { return s->first + s->second; }
INLINE int64_t tiles(const Shape *s) { return s->units * s->strip * across(s); } /* multiplied at once */

/* Distance between the inputs of neighbouring tiles, and by how much they overlap. */
INLINE int64_t advance(const Shape *s) { return TILE * stride_of(s->flat); }
INLINE int64_t overlap(const Shape *s) { return points_of(s->flat) - advance(s); }

/* Of a strip with the border that its tiles' patches need, and of its output: rows, points of a row and of a depth. */
INLINE int64_t rows_in(const Shape *s) { return advance(s) * s->strip + overlap(s); }
INLINE int64_t row_in(const Shape *s) { return (advance(s) * across(s) + overlap(s)) * channels(s); }
INLINE int64_t depth_in(const Shape *s) { return rows_in(s) * row_in(s); }
INLINE int64_t row_out(const Shape *s) { return TILE * across(s) * s->out; }
INLINE int64_t depth_out(const Shape *s) { return TILE * s->strip * row_out(s); }

/* Size of all points of a depth's tiles; one point of all tiles takes `size`. */
INLINE int64_t points_size(int64_t flat, int64_t size) {
    return points_of(flat) * points_of(flat) * size + GROUPS * STAGGER;
}

/* Return where the points of a group begin; they are contiguous, because they are multiplied at once. */
INLINE int64_t group_at(int64_t flat, int64_t group, int64_t size) {
    int64_t row = group / KINDS, column = group % KINDS;
    return (row * points_of(flat) + column * members_of(row, flat)) * size + group * STAGGER;
}

/* Return where a point begins. */
INLINE int64_t point_at(int64_t flat, int64_t row, int64_t column, int64_t size) {
    int64_t kind = kind_of(column, flat), group = kind_of(row, flat) * KINDS + kind;
    int64_t member = (row - kind_of(row, flat)) * members_of(kind, flat) + column - kind;
    return group_at(flat, group, size) + member * size;
}

/* What is convolved in one step: `units` from `unit` on, `strip` rows of tiles from `top` on. */
typedef struct {
    int64_t unit, units, top, strip;
} Step;

/* Memory of a thread: strips of the inputs and the outputs (units, depths), and the points of one depth's tiles (tiles, c)
 * before and after multiplication. Row y of the inputs is at index y + 1 of a ring buffer, so that the last rows of a strip
 * are reused in the next. */
typedef struct {
    Point *in, *out, *points, *products;
} Scratch;

INLINE Scratch scratch_of(const Shape *s, float *work) {
    Scratch scratch = {.in = (Point *)work};
    scratch.out = scratch.in + s->units * depths(s) * depth_in(s);
    scratch.points = scratch.out + s->units * depths(s) * depth_out(s);
    scratch.products = scratch.points + points_size(s->flat, tiles(s) * channels(s));
    return scratch;
}

static int64_t check_shape(const Shape *s) {
    RETURN_UNLESS_OK(check_array(s, sizeof(int64_t)));
    if (!is_filter(s->deep, s->flat)) return BAD_FILTER;
    if (s->first < 1 || s->second < 0 || s->first % LANES || s->second % LANES || s->out % COLUMNS) return BAD_CHANNELS;
    RETURN_UNLESS_OK(check_sizes(4, &s->n));
    RETURN_UNLESS_OK(check_sizes(4, &s->out));
    RETURN_UNLESS_OK(check_sizes(3, &s->units));
    int64_t deep = stride_of(s->deep), flat = stride_of(s->flat);
    int fits = s->out_d == parts(s->d, deep) && s->out_h == parts(s->h, flat) && s->out_w == parts(s->w, flat);
    return fits ? OK : BAD_SIZE;
}

/* Return how many floats of `work` each thread needs; minus a code if the shape is wrong. */
API int64_t segwright_convolve_work(const Shape *s) {
    int64_t code = check_shape(s);
    if (code != OK) return -code;
    int64_t strips = s->units * depths(s) * (depth_in(s) + depth_out(s));
    int64_t points = points_size(s->flat, tiles(s) * channels(s)) + points_size(s->flat, tiles(s) * s->out);
    return parts(strips + points, sizeof(float) / sizeof(Point));
}

/* An image (n, d, h, w, c); with `factors` (n, 3, c) its norm's LeakyReLU is what is convolved. */
typedef struct {
    const float *values;
    int64_t c;
    const float *factors;
    float slope;
} Image;

/* Transform a row of `w` voxels along the depth, from `planes` (w, c), NULL for zeros, to depths (w, wide) that are
 * `apart`. */
INLINE void transform_row_in(
    int64_t filter, const float *const *planes, const float *factors, float slope, int64_t w, int64_t c, Point *to,
    int64_t wide, int64_t apart
) {
    for (int64_t x = 0; x < w; x++) {
        for (int64_t i = 0; i < c; i += LANES) {
            Lanes whole[MAX_POINTS], deep[MAX_POINTS];
            for (int q = 0; q < points_of(filter); q++) {
                whole[q] = planes[q] ? load(planes[q] + x * c + i) : (Lanes){0};
                if (factors && planes[q]) whole[q] = normalised(whole[q], factors + i, c, slope);
            }
            if (filter == IDENTITY) deep[0] = whole[0];
            else transform_input(filter, whole, deep, 1);
            for (int q = 0; q < points_of(filter); q++) store_points(to + q * apart + x * wide + i, deep[q]);
        }
    }
}

/* Transform the rows of an image that a step needs, from `start` on and zero outside, along the depth, to the channels
 * of its strips from `at` on. */
static void transform_depth_in(const Shape *s, Step step, const Image *image, int64_t at, int64_t start, Scratch scratch) {
    int64_t c = image->c, wide = channels(s), apart = depth_in(s), w = s->w;
    int64_t stop = advance(s) * (step.top + step.strip) + overlap(s) - 1;
    float slope = image->slope;
    for (int64_t each = 0; each < step.units; each++) {
        int64_t unit = step.unit + each, sample = unit / units_of(s);
        int64_t first = unit % units_of(s) * planes_of(s) * stride_of(s->deep) - (s->deep != IDENTITY);
        const float *factors = image->factors ? image->factors + sample * 3 * c : NULL;
        for (int64_t y = start; y < stop; y++) {
            const float *planes[MAX_POINTS];
            Point *row = scratch.in + each * depths(s) * apart + (y + 1) % rows_in(s) * row_in(s) + at, *to = row + wide;
            for (int q = 0; q < depths(s); q++) {
                int64_t plane = first + q;
                int is_inside = y >= 0 && y < s->h && plane >= 0 && plane < s->d;
                planes[q] = is_inside ? image->values + ((sample * s->d + plane) * s->h + y) * w * c : NULL;
                for (int64_t x = 0; x < row_in(s) / wide; x += x ? 1 : w + 1) { /* before and after the row */
                    memset(row + q * apart + x * wide, 0, sizeof(Point) * c);
                }
            }
            if (s->deep == IDENTITY) transform_row_in(IDENTITY, planes, factors, slope, w, c, to, wide, apart);
            else if (s->deep == STRIDED) transform_row_in(STRIDED, planes, factors, slope, w, c, to, wide, apart);
            else if (s->deep == FOUR) transform_row_in(FOUR, planes, factors, slope, w, c, to, wide, apart);
            else if (factors) transform_row_in(FIVE, planes, factors, slope, w, c, to, wide, apart);
            else transform_row_in(FIVE, planes, NULL, 1, w, c, to, wide, apart);
        }
    }
}

/* Inverse of transform_row_in: from depths (w, c) that are `apart` to `count` planes (w, c). */
INLINE void transform_row_out(
    int64_t filter, const Point *from, int64_t apart, int64_t w, int64_t c, const float *bias, float *const *planes,
    int64_t count
) {
    for (int64_t x = 0; x < w; x++) {
        for (int64_t i = 0; i < c; i += LANES) {
            Lanes deep[MAX_POINTS], whole[MAX_POINTS] = {0}, constant = bias ? load(bias + i) : (Lanes){0};
            for (int q = 0; q < points_of(filter); q++) deep[q] = load_points(from + q * apart + x * c + i);
            if (filter == IDENTITY) whole[0] = deep[0];
            else transform_output(filter, deep, whole, 1);
            for (int64_t q = 0; q < count; q++) store(planes[q] + x * c + i, whole[q] + constant);
        }
    }
}

/* Transform a step's strips back along the depth and write what lies in the image; with `records` (n, units, h, record)
 * a record of each row of a unit, too. */
static void transform_depth_out(const Shape *s, Step step, const float *bias, Scratch scratch, float *out, float *records) {
    int64_t c = s->out, w = s->out_w, h = s->out_h, apart = depth_out(s);
    for (int64_t each = 0; each < step.units; each++) {
        int64_t unit = step.unit + each, sample = unit / units_of(s), first = unit % units_of(s) * planes_of(s);
        int64_t count = least(planes_of(s), s->out_d - first);
        const Point *from = scratch.out + each * depths(s) * apart;
        for (int64_t y = TILE * step.top; y < least(TILE * (step.top + step.strip), h); y++, from += row_out(s)) {
            float *planes[MAX_POINTS];
            for (int q = 0; q < count; q++) planes[q] = out + ((sample * s->out_d + first + q) * h + y) * w * c;
            if (s->deep == IDENTITY) transform_row_out(IDENTITY, from, apart, w, c, bias, planes, 1);
            else if (s->deep == STRIDED) transform_row_out(STRIDED, from, apart, w, c, bias, planes, count);
            else if (s->deep == FOUR) transform_row_out(FOUR, from, apart, w, c, bias, planes, count);
            else if (count == tile_of(FIVE)) transform_row_out(FIVE, from, apart, w, c, bias, planes, tile_of(FIVE));
            else transform_row_out(FIVE, from, apart, w, c, bias, planes, count);
            if (!records) continue;
            moments((const void *const *)planes, count, 0, w, c, records + (unit * h + y) * record(c), 0);
        }
    }
}

/* Prefetch what is written next if a vector is a cache line: these are too many streams for the hardware prefetcher. */
INLINE void prefetch_line(const Point *place) {
    if ((int)LANES == LINE) __builtin_prefetch(place);
}

/* Transform a patch, one vector at each position of its rows, to points that begin at `offsets`; the next column is
 * `columns` elements away. */
INLINE void transform_patch(
    int64_t flat, const Point *const *rows, int64_t at, int64_t columns, Point *to, const int64_t *offsets
) {
    int64_t points = points_of(flat);
    Lanes half[MAX_POINTS * MAX_POINTS];
#pragma GCC unroll 1
    for (int j = 0; j < points; j++, at += columns) {
        Lanes column[MAX_POINTS];
        for (int i = 0; i < points; i++) column[i] = load_points(rows[i] + at);
        transform_input(flat, column, half + j, points);
    }
#pragma GCC unroll 1
    for (int i = 0; i < points; i++, offsets += points) {
        Lanes row[MAX_POINTS];
        transform_input(flat, half + points * i, row, 1);
        for (int j = 0; j < points; j++) {
            store_points(to + offsets[j], row[j]);
            prefetch_line(to + offsets[j] + LANES);
        }
    }
}

/* Inverse transform: from points to a tile. */
INLINE void transform_tile(
    int64_t flat, const Point *from, const int64_t *offsets, Point *to, int64_t rows, int64_t columns
) {
    int64_t points = points_of(flat);
    Lanes half[TILE * MAX_POINTS];
#pragma GCC unroll 1
    for (int j = 0; j < points; j++) {
        Lanes column[MAX_POINTS];
        for (int i = 0; i < points; i++) column[i] = load_points(from + offsets[points * i + j]);
        transform_output(flat, column, half + j, points);
    }
#pragma GCC unroll 1
    for (int i = 0; i < TILE; i++) {
        Lanes row[TILE];
        transform_output(flat, half + points * i, row, 1);
        for (int j = 0; j < TILE; j++) {
            store_points(to + i * rows + j * columns, row[j]);
            prefetch_line(to + i * rows + (j + TILE) * columns);
        }
    }
}

/* Convolve one depth of a step's strips by its transformed weights; `flat` must be a compile-time constant. */
INLINE void convolve_depth(int64_t flat, const Shape *s, Step step, int64_t depth, const Point *weights, Scratch scratch) {
    int64_t c = channels(s), out = s->out, points = points_of(flat), offsets[MAX_POINTS * MAX_POINTS], tile = 0;
    int64_t count = step.units * step.strip * across(s);
    for (int i = 0; i < points * points; i++) offsets[i] = point_at(flat, i / points, i % points, count * c);
    for (int64_t unit = 0; unit < step.units; unit++) {
        const Point *strip = scratch.in + (unit * depths(s) + depth) * depth_in(s);
        for (int64_t row = step.top; row < step.top + step.strip; row++) {
            const Point *rows[MAX_POINTS];
            for (int i = 0; i < points; i++) rows[i] = strip + (advance(s) * row + i) % rows_in(s) * row_in(s);
            for (int64_t x = 0; x < across(s); x++, tile++) {
                for (int64_t i = 0; i < c; i += LANES) {
                    transform_patch(flat, rows, advance(s) * x * c + i, c, scratch.points + tile * c + i, offsets);
                }
            }
        }
    }
    for (int64_t group = 0; group < GROUPS; group++, weights += c * out + STAGGER) {
        int64_t members = members_of(group / KINDS, flat) * members_of(group % KINDS, flat);
        const Point *from = scratch.points + group_at(flat, group, count * c);
        multiply_points(from, members * count, c, weights, out, scratch.products + group_at(flat, group, count * out));
    }
    for (int i = 0; i < points * points; i++) offsets[i] = point_at(flat, i / points, i % points, count * out);
    tile = 0;
    for (int64_t unit = 0; unit < step.units; unit++) {
        Point *strip = scratch.out + (unit * depths(s) + depth) * depth_out(s);
        for (int64_t row = 0; row < step.strip; row++) {
            for (int64_t x = 0; x < across(s); x++, tile++) {
                Point *to = strip + TILE * (row * row_out(s) + x * out);
                for (int64_t i = 0; i < out; i += LANES) {
                    transform_tile(flat, scratch.products + tile * out + i, offsets, to + i, row_out(s), out);
                }
            }
        }
    }
}

/* Convolve two images, concatenated along their channels, padded by one voxel where there are three taps; jobs as in
 * Shape. Arguments: Shape; values, factors or NULL, and slope of each image; transformed weights, bias or NULL, output;
 * records of its moments or NULL. */
static void convolve_kernel(const Argument *arguments, float *work, int64_t *next) {
    const Shape *s = arguments[0].array;
    Image first = {arguments[1].array, s->first, arguments[2].array, arguments[3].real};
    Image second = {arguments[4].array, s->second, arguments[5].array, arguments[6].real};
    const Point *points = arguments[7].array;
    const float *bias = arguments[8].array;
    float *out = arguments[9].array, *records = arguments[10].array;
    int64_t units = s->n * units_of(s), lengths = parts(down(s), s->length);
    Scratch scratch = scratch_of(s, work);
    for (int64_t job; (job = take(next)) < parts(units, s->units) * lengths;) {
        int64_t unit = job / lengths * s->units, begin = job % lengths * s->length;
        int64_t end = least(begin + s->length, down(s));
        for (int64_t top = begin; top < end; top += s->strip) {
            Step step = {unit, least(s->units, units - unit), top, least(s->strip, end - top)};
            int64_t row = advance(s) * top + (top == begin ? 0 : overlap(s)) - 1; /* the first that is not in the ring buffer yet */
            transform_depth_in(s, step, &first, 0, row, scratch);
            if (s->second) transform_depth_in(s, step, &second, s->first, row, scratch);
            for (int64_t depth = 0; depth < depths(s); depth++) {
                const Point *weights = points + kind_of(depth, s->deep) * GROUPS * (channels(s) * s->out + STAGGER);
                if (s->flat == FOUR) convolve_depth(FOUR, s, step, depth, weights, scratch);
                else convolve_depth(STRIDED, s, step, depth, weights, scratch);
            }
            transform_depth_out(s, step, bias, scratch, out, records);
        }
    }
}

static int64_t convolve_check(const Argument *arguments, int64_t work_size) {
    const Shape *s = arguments[0].array;
    RETURN_UNLESS_OK(check_shape(s));
    if (work_size < segwright_convolve_work(s)) return SMALL_WORK;
    RETURN_UNLESS_OK(check_floats(arguments[1].array));
    RETURN_UNLESS_OK(check_optional(arguments[2].array));
    if (s->second) RETURN_UNLESS_OK(check_floats(arguments[4].array));
    RETURN_UNLESS_OK(check_optional(arguments[5].array));
    RETURN_UNLESS_OK(check_array(arguments[7].array, sizeof(Point)));
    RETURN_UNLESS_OK(check_optional(arguments[8].array));
    RETURN_UNLESS_OK(check_floats(arguments[9].array));
    RETURN_UNLESS_OK(check_optional(arguments[10].array));
    return OK;
}

API const Entry segwright_convolve = {convolve_kernel, convolve_check, 11};
