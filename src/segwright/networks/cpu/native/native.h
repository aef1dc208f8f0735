/* What the kernels share: the work of several threads, and how arguments reach them.
 *
 * All arrays are float32, but for points (products.h), or bfloat16 where a norm is told so by `half`, and channels-last:
 * images (n, d, h, w, c).
 * A kernel is called by several threads at once with the same arguments, its own `work` aside; `next` is the job that
 * the next free thread takes. No result depends on the number of threads.
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

INLINE int64_t take(int64_t *next) { return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED); }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t parts(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

#endif
