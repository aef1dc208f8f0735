/* Shared by all kernels: arguments, checks of them, and jobs.
 *
 * Arrays are float32 and channels-last, images (n, d, h, w, c). Exceptions: products (products.h), and images of a norm
 * in bfloat16 if its argument `half` says so.
 * Several threads call a kernel at once with the same arguments, but each with its own `work`. `next` is the next job
 * that a free thread takes. No result depends on the number of threads.
 */
#ifndef SEGWRIGHT_NATIVE_H
#define SEGWRIGHT_NATIVE_H

#include <string.h>

#include "vectors.h"

#define API __attribute__((visibility("default")))

typedef union {
    int64_t whole;
    float real;
    void *array;
} Argument;

typedef void Kernel(const Argument *arguments, float *work, int64_t *next);

/* Why a kernel refuses its arguments; segwright_message has the words. */
enum { OK, WRONG_COUNT, NULL_ARRAY, MISALIGNED, BAD_SIZE, BAD_CHANNELS, BAD_FILTER, SMALL_WORK, CODES };

/* Return OK or the reason; called once before the threads begin, with the floats of work that each of them has. */
typedef int64_t Check(const Argument *arguments, int64_t work_size);

/* What segwright_call is given: a kernel, the check of its arguments, and their number. */
typedef struct {
    Kernel *kernel;
    Check *check;
    int64_t count;
} Entry;

#define RETURN_UNLESS_OK(code) \
    do { \
        int64_t code_ = (code); \
        if (code_ != OK) return code_; \
    } while (0)

INLINE int64_t check_array(const void *array, uintptr_t alignment) {
    return !array ? NULL_ARRAY : (uintptr_t)array % alignment ? MISALIGNED : OK;
}

INLINE int64_t check_floats(const void *array) { return check_array(array, sizeof(float)); }
INLINE int64_t check_optional(const void *array) { return array ? check_floats(array) : OK; }

/* Check that `count` sizes are positive. */
INLINE int64_t check_sizes(int64_t count, const int64_t *sizes) {
    for (int64_t i = 0; i < count; i++) {
        if (sizes[i] < 1) return BAD_SIZE;
    }
    return OK;
}

INLINE int64_t take(int64_t *next) { return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED); }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t parts(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

#endif
