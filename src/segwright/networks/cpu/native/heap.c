/* Helps glibc's allocator to find its large blocks again. */
#include <stdlib.h>

#include "native.h"

/* Give what was cut off large blocks back to them.
 *
 * Torch's arrays begin at multiples of 64 bytes. glibc before 2.38 takes each out of a block that is 112 bytes larger, and
 * frees the rests, of 24 to 104 bytes, into the thread's cache of small blocks (7 of each size), where they stay apart from
 * their block; it is too short, then, for the next array of that size. Here that cache gets other blocks, so that these,
 * and rests that come while it is full, go where glibc joins what is free. Elsewhere it costs some microseconds. */
API void segwright_rejoin(void) {
    enum { SMALLEST = 24, LARGEST = 104, STEP = 16, KEPT = 7 };
    void *volatile taken[2 * KEPT]; /* volatile, or compilers leave out blocks that nobody reads */
    for (size_t size = SMALLEST; size <= LARGEST; size += STEP) {
        for (int i = 0; i < 2 * KEPT; i++) taken[i] = malloc(size);
        for (int i = 2 * KEPT - 1; i >= 0; i--) free(taken[i]);
    }
}
