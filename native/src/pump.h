/* The request pump's C half: wait for the FUSE descriptor without the GIL and without trio.
 *
 * tzfs/mount/pump.py owns the policy and the states; here are the two things Python cannot do: poll and yield the
 * processor in a loop of microseconds, and make one call of pyfuse3 go through a function of ours.
 */
#ifndef TZFS_PUMP_H
#define TZFS_PUMP_H

#include <stddef.h>
#include <stdint.h>

struct tzfs_answers;

enum {
    TZFS_PUMP_READY = 1, /* a request waits on the FUSE descriptor (or it has failed: the read will say) */
    TZFS_PUMP_IDLE = 2,  /* nothing came: wait in trio */
    TZFS_PUMP_TURN = 3,  /* trio has not run for turn_max_ns, or one of its timers is due */
    TZFS_PUMP_WOKEN = 4, /* the wake descriptor is readable: a thread job, a signal or a message waits for trio */
    /* A request of this kind has been read, which the caller may answer itself. */
    TZFS_PUMP_WRITE = 5,
    TZFS_PUMP_CREATE = 6,
    TZFS_PUMP_UNLINK = 7,
};

struct tzfs_pump {
    /* set by the caller */
    int64_t spin_ns;     /* longest poll-and-yield; 0: never */
    int64_t turn_max_ns; /* longest time that trio does not run */
    int64_t turn_ns;     /* when trio last ran, CLOCK_MONOTONIC */
    int64_t deadline_ns; /* when its next timer is due; INT64_MAX: none */
    /* Where it is set, requests are read here, and what it can answer never reaches the caller.  The descriptor must
     * be non-blocking, and the guard in place: it hands over what was read and not answered. */
    struct tzfs_answers *answers;
    /* the adaptive spin: after a spin in vain the next 1, 3, 7, 15, 15 ... waits do not spin */
    uint32_t failures; /* spins in vain since the last request that came in time */
    uint32_t skip;     /* waits that will not spin yet */
    uint32_t woken;    /* the last verdict was WOKEN: a request goes first now */
    uint32_t unpolled; /* reads since the last poll */
    uint32_t at_once;  /* set by the caller: those requests have verdicts of their own, where `answers` is set */
    /* with such a verdict: who asks for what, until it is answered or received */
    uint32_t asked;  /* the verdict */
    uint32_t uid;
    uint32_t gid;
    uint32_t mode;   /* of CREATE, as `flags` */
    uint32_t flags;
    uint64_t unique;
    uint64_t node;   /* the directory, of CREATE and UNLINK */
    uint64_t handle; /* of WRITE, as `offset` */
    uint64_t offset;
    const char *payload; /* what a WRITE carries; else the name */
    uint64_t payload_bytes;
    /* counted for statistics */
    uint64_t ready;   /* requests that were there at once */
    uint64_t spun;    /* requests that came while spinning */
    uint64_t vain;    /* spins that ended with nothing */
    uint64_t idle;    /* waits handed to trio */
    uint64_t turns;   /* turns given to trio because of the time */
    uint64_t wakes;   /* turns given to trio because of the wake descriptor */
    uint64_t yields;  /* sched_yield calls */
    uint64_t spin_sum_ns;
};

/* CLOCK_MONOTONIC. */
int64_t tzfs_pump_now_ns(void);

/* Wait for `fuse_fd`, at most until a turn of trio is due.  `wake_fd` may be -1.  Returns one of the verdicts. */
int tzfs_pump_wait(struct tzfs_pump *pump, int fuse_fd, int wake_fd);

/* Make the shared object at `path` (which must be loaded) receive its FUSE requests through a function that answers
 * EINTR, upon which pyfuse3 waits again, where the original answers EAGAIN, which pyfuse3 takes for the end.
 * 0: done.  Else nothing was changed: 1 not an ELF object we can read, 2 it does not call the function by that name,
 * 3 the slot cannot be written, 4 done before. */
int tzfs_pump_guard(const char *path);

/* Answers what has been asked with `result`: -errno, or the bytes written, or 0.  Without that call, or the next, it is
 * handed over as any other, whole. */
void tzfs_pump_answer(struct tzfs_pump *pump, int fuse_fd, int64_t result);

/* Answers a CREATE: the file has been made or found and opened, and `answers` told of all of it. */
void tzfs_pump_created(struct tzfs_pump *pump, int fuse_fd, uint64_t handle);

/* Before a WRITE is answered, which then must follow: its payload from a page's beginning on, as the caller's own, who
 * gives it to `tzfs_pump_free`, on any thread.  NULL where there is no memory. */
void *tzfs_pump_take(struct tzfs_pump *pump);
void tzfs_pump_free(void *taken);

/* Undo it: 0 done, 1 there was none, 3 the slot cannot be written (the guard then stays, and stays harmless). */
int tzfs_pump_unguard(void);

/* Whether the guarded libfuse takes requests from memory that it did not allocate; `tzfs_pump.answers` may be set. */
int tzfs_pump_hands_over(void);

/* How often the guarded call has been made, and how often it found that the request had been withdrawn. */
uint64_t tzfs_pump_received(void);
uint64_t tzfs_pump_withdrawn(void);

#endif
