/* Checks the arguments of a kernel and calls it in several threads. */
#include <pthread.h>

#include "native.h"

#ifndef SEGWRIGHT_SOURCES_HASH
#error "compile with build_kernels.py, which defines SEGWRIGHT_SOURCES_HASH"
#endif

/* OpenMP's function to run another in several threads, as compilers call it (GNU's libgomp; LLVM's has it too). */
typedef void Parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);

typedef struct {
    Kernel *kernel;
    const Argument *arguments;
    float *work;
    int64_t work_size, started, next;
} Call;

/* The hash of the sources that this was compiled from. */
API const char *segwright_sources(void) { return SEGWRIGHT_SOURCES_HASH; }

/* How many channels a vector holds; channels of images have to be multiples of it. */
API int64_t segwright_lanes(void) { return LANES; }

/* The words for a code that segwright_call returns. */
API const char *segwright_message(int64_t code) {
    static const char *const messages[CODES] = {
        [OK] = "no error",
        [WRONG_COUNT] = "wrong number of arguments",
        [NULL_ARRAY] = "an array is missing",
        [MISALIGNED] = "an array is not aligned to its elements",
        [BAD_SIZE] = "a size is not positive, or sizes do not fit each other",
        [BAD_CHANNELS] = "channels are not a multiple of what the vectors hold",
        [BAD_FILTER] = "unknown filter, stride or kernel size",
        [SMALL_WORK] = "too little work memory per thread",
    };
    return code >= 0 && code < CODES ? messages[code] : "unknown error";
}

static void run(void *data) {
    Call *call = data;
    call->kernel(call->arguments, call->work + take(&call->started) * call->work_size, &call->next);
}

static void *run_in_thread(void *data) {
    run(data);
    return NULL;
}

/* Call a kernel in at most `threads` threads, each with `work_size` floats of `work`. With `parallel` they are torch's own,
 * which spin for a while after a layer and start at once; without it new ones are made. Return OK or a code. */
API int64_t segwright_call(
    const Entry *entry, const Argument *arguments, int64_t count, float *work, int64_t work_size, int64_t threads,
    Parallel *parallel
) {
    enum { MAX_THREADS = 256 };
    if (!entry || !arguments || (work_size && !work)) return NULL_ARRAY;
    if (count != entry->count) return WRONG_COUNT;
    if (threads < 1 || work_size < 0) return BAD_SIZE;
    RETURN_UNLESS_OK(entry->check(arguments, work_size));
    Call call = {entry->kernel, arguments, work, work_size, 0, 0};
    pthread_t others[MAX_THREADS];
    int64_t started = 0;
    if (parallel && threads > 1) {
        parallel(run, &call, (unsigned)threads, 0);
        return OK;
    }
    while (started < least(threads, MAX_THREADS) - 1 && !pthread_create(&others[started], NULL, run_in_thread, &call)) started++;
    run(&call);
    while (started) pthread_join(others[--started], NULL);
    return OK;
}
