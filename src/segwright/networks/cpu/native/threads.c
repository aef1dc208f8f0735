/* Calls a kernel in several threads. */
#include <pthread.h>

#include "native.h"

/* OpenMP's way to call a function in a team of threads, as compilers do (GNU's libgomp, and LLVM's for its sake). */
typedef void Team(void (*function)(void *), void *data, unsigned threads, unsigned flags);

typedef struct {
    Kernel *kernel;
    const Argument *arguments;
    float *work;
    int64_t work_size, began, next;
} Call;

/* What `kernels.py` expects; to be counted up with every change of these functions. */
API int64_t segwright_version(void) { return 13; }

/* How many channels a vector holds, which those of images have to be multiples of. */
API int64_t segwright_lanes(void) { return LANES; }

static void take_part(void *data) {
    Call *call = data;
    call->kernel(call->arguments, call->work + take(&call->began) * call->work_size, &call->next);
}

static void *take_part_in_thread(void *data) {
    take_part(data);
    return NULL;
}

/* Call a kernel in `threads` threads at most, each with `work_size` floats of `work`: by its `team` in torch's own,
 * which look out for work a while after a layer and are there at once; without a team in new ones. */
API void segwright_call(
    Kernel *kernel, const Argument *arguments, float *work, int64_t work_size, int64_t threads, Team *team
) {
    enum { MOST = 256 };
    Call call = {kernel, arguments, work, work_size, 0, 0};
    pthread_t others[MOST];
    int64_t started = 0;
    if (team && threads > 1) {
        team(take_part, &call, (unsigned)threads, 0);
        return;
    }
    while (started < least(threads, MOST) - 1 && !pthread_create(&others[started], NULL, take_part_in_thread, &call)) {
        started++;
    }
    take_part(&call);
    while (started) pthread_join(others[--started], NULL);
}
