/* What the pump hands over to pyfuse3, and what it gives its caller to answer at once. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "driver_answers.h"
#include "pump.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WORKERS = 5, REQUEST_MAX = 100000 };

struct worker {
    struct { /* libfuse's `struct fuse_buf` */
        size_t size;
        int flags;
        void *mem;
        int fd;
        off_t position;
    } buffer;
    uint8_t mark; /* every byte after the header of what it has received */
};

static void send_request(uint32_t opcode, size_t bytes, uint8_t mark)
{
    uint8_t *request = block(bytes);
    memset(request, mark, bytes);
    const struct fuse_in_header in = {.len = (uint32_t)bytes, .opcode = opcode, .unique = 9, .nodeid = 9};
    memcpy(request, &in, sizeof in);
    EXPECT(send(ends[1], request, bytes, 0) == (ssize_t)bytes);
    free(request);
}

static int intact(const struct worker *w)
{
    const uint8_t *bytes = w->buffer.mem;
    for (size_t i = sizeof(struct fuse_in_header); i < w->buffer.size; i++)
        if (bytes[i] != w->mark)
            return 0;
    return 1;
}

/* One session: what was not answered stays what it is for as long as its worker has it, which frees it in the end. */
static void session(int (*receive)(void *, void *), uint64_t seed)
{
    struct tzfs_answers *a = answering();
    struct tzfs_pump *pump = calloc(1, sizeof *pump);
    struct worker workers[WORKERS];
    uint8_t reply[REPLY_MAX];
    uint64_t state = seed;
    if (!pump || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends))
        abort();
    memset(workers, 0, sizeof workers);
    put(a, 9, S_IFREG);
    pump->turn_ns = tzfs_pump_now_ns();
    pump->turn_max_ns = pump->deadline_ns = INT64_MAX / 2;
    for (int step = 0; step < 3000; step++) {
        struct worker *w = &workers[drawn(&state) % WORKERS];
        const size_t bytes = sizeof(struct fuse_in_header) + drawn(&state) % (step % 8 ? 200 : REQUEST_MAX);
        if (step % 500 == 0) { /* it has ended; another has begun, and libfuse has given it less than we need */
            free(w->buffer.mem);
            memset(w, 0, sizeof *w);
            w->buffer.mem = block(5000);
        }
        pump->answers = step % 50 < 40 ? a : NULL;
        w->mark = (uint8_t)step;
        if (pump->answers && drawn(&state) & 1)
            send_request(FUSE_GETATTR, sizeof(struct fuse_in_header) + sizeof(struct fuse_getattr_in), 0);
        send_request(FUSE_WRITE, bytes, w->mark);
        w->buffer.flags = 2; /* of a request before, which came through a pipe */
        EXPECT(tzfs_pump_wait(pump, ends[0], -1) == TZFS_PUMP_READY);
        EXPECT(receive(&ends[0], &w->buffer) == (int)bytes && w->buffer.size == bytes);
        EXPECT(!pump->answers || w->buffer.flags == 0);
        for (int i = 0; i < WORKERS; i++)
            EXPECT(intact(&workers[i]));
        while (replied(reply))
            continue;
    }
    const uint64_t withdrawn = tzfs_pump_withdrawn();
    EXPECT(receive(&ends[0], &workers[0].buffer) == -EINTR && tzfs_pump_withdrawn() == withdrawn + 1);
    pump->answers = a;
    send_request(FUSE_WRITE, 100, 1);
    EXPECT(tzfs_pump_wait(pump, ends[0], -1) == TZFS_PUMP_READY); /* the session ends with this one in hand */
    for (int i = 0; i < WORKERS; i++)
        free(workers[i].buffer.mem);
    free(pump);
    tzfs_answers_free(a);
    close(ends[0]);
    close(ends[1]);
}

/* Has the pump read a request for `node` that carries `bytes` of `body`. */
static int waited(struct tzfs_pump *pump, uint32_t opcode, uint64_t node, const void *body, size_t bytes)
{
    const size_t length = sizeof(struct fuse_in_header) + bytes;
    uint8_t *request = block(length);
    const struct fuse_in_header in = {
        .len = (uint32_t)length, .opcode = opcode, .unique = 9, .nodeid = node, .uid = 61, .gid = 62};
    memcpy(request, &in, sizeof in);
    memcpy(request + sizeof in, body, bytes);
    EXPECT(send(ends[1], request, length, 0) == (ssize_t)length);
    free(request);
    return tzfs_pump_wait(pump, ends[0], -1);
}

/* CREATE and UNLINK with verdicts of their own: answered, or handed over whole where they are not well formed, not for
 * the tree that is written, or not asked for. */
static void naming(int (*receive)(void *, void *))
{
    enum { HEAD = sizeof(struct fuse_in_header), NODE = 9, PARENT = 5 };
    static const struct {
        const char *name;
        size_t bytes;
        int ours;
    } names[] = {{"a", 2, 1}, {"name", 5, 1}, {"\xff\n/", 4, 1}, {"", 1, 0}, {"a", 1, 0}, {"a\0b", 4, 0}, {"a\0", 3, 0}, {"", 0, 0}};
    struct tzfs_answers *a = answering();
    struct tzfs_pump *pump = calloc(1, sizeof *pump);
    struct worker worker = {.buffer = {.mem = block(5000)}};
    uint8_t reply[REPLY_MAX];
    uint64_t writers[2];
    if (!pump || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends))
        abort();
    pump->turn_ns = tzfs_pump_now_ns();
    pump->turn_max_ns = pump->deadline_ns = INT64_MAX / 2;
    pump->answers = a;
    for (int step = 0; step < 6; step++) {
        pump->at_once = step != 1;
        a->enabled = step != 2;
        a->writable = step != 3;
        const uint64_t parent = step == 4 ? a->live_max + 1 : step == 5 ? a->live_max : PARENT;
        const int wanted = step == 0 || step == 5;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            struct {
                struct fuse_create_in in;
                char name[8];
            } create = {.in = {.mode = 0100640, .flags = O_CREAT | O_WRONLY}};
            memcpy(create.name, names[i].name, names[i].bytes);
            const int ours = wanted && names[i].ours;
            const size_t bytes = sizeof create.in + names[i].bytes;
            EXPECT(waited(pump, FUSE_CREATE, parent, &create, bytes) == (ours ? TZFS_PUMP_CREATE : TZFS_PUMP_READY));
            if (ours) {
                EXPECT(pump->unique == 9 && pump->node == parent && pump->uid == 61 && pump->gid == 62);
                EXPECT(pump->mode == 0100640 && pump->flags == (O_CREAT | O_WRONLY));
                EXPECT(pump->payload_bytes == names[i].bytes - 1 && !memcmp(pump->payload, names[i].name, pump->payload_bytes));
                put(a, NODE, S_IFREG | 0640);
                tzfs_answers_told(a, NODE);
                tzfs_answers_opened(a, NODE);
                tzfs_pump_created(pump, ends[0], NODE | WRITING);
                EXPECT(replied(reply) == sizeof(struct fuse_out_header) + sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out));
                EXPECT(tzfs_answers_writers(a, writers, 2) == 1 && tzfs_answers_forget(a, NODE, 1));
                tzfs_answers_closed(a, NODE);
            } else {
                EXPECT(receive(&ends[0], &worker.buffer) == (int)(HEAD + bytes));
                EXPECT(!memcmp((char *)worker.buffer.mem + HEAD, &create, bytes));
            }
            EXPECT(waited(pump, FUSE_UNLINK, parent, create.name, names[i].bytes) == (ours ? TZFS_PUMP_UNLINK : TZFS_PUMP_READY));
            if (ours) {
                EXPECT(pump->node == parent && pump->payload_bytes == names[i].bytes - 1);
                tzfs_pump_answer(pump, ends[0], i % 2 ? 0 : -ENOENT);
                EXPECT(replied(reply) == sizeof(struct fuse_out_header));
                struct fuse_out_header out;
                memcpy(&out, reply, sizeof out);
                EXPECT(out.error == (i % 2 ? 0 : -ENOENT));
            } else {
                EXPECT(receive(&ends[0], &worker.buffer) == (int)(HEAD + names[i].bytes));
            }
        }
        struct fuse_create_in cut = {.flags = O_CREAT};
        EXPECT(waited(pump, FUSE_CREATE, parent, &cut, sizeof cut - 1) == TZFS_PUMP_READY);
        EXPECT(receive(&ends[0], &worker.buffer) == (int)(HEAD + sizeof cut - 1));
    }
    a->enabled = a->writable = 1;
    for (int known = 0; known < 2; known++) { /* nobody takes the answer, or there is no memory for it */
        if (known)
            put(a, NODE, S_IFREG);
        else
            tzfs_answers_drop(a, NODE);
        tzfs_answers_told(a, NODE);
        tzfs_answers_opened(a, NODE);
        const uint64_t withdrawn = tzfs_pump_withdrawn();
        tzfs_pump_created(pump, known ? -1 : ends[0], NODE | WRITING);
        EXPECT(tzfs_pump_withdrawn() == withdrawn + 1);
        EXPECT(!tzfs_answers_knows(a, NODE) && tzfs_answers_writers(a, NULL, 0) == 0);
        EXPECT(tzfs_answers_created(a, known ? -1 : ends[0], 9, NODE) == 0);
    }
    while (replied(reply))
        continue;
    free(worker.buffer.mem);
    free(pump);
    tzfs_answers_free(a);
    close(ends[0]);
    close(ends[1]);
}

/* A WRITE with a verdict of its own: answered, taken and answered, or handed over whole.  What was taken is the taker's
 * until it gives it back. */
static void writing(int (*receive)(void *, void *), uint64_t seed)
{
    enum { HEAD = sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in), TAKEN = 8 };
    static const size_t sizes[] = {1, 4096, 32767, 32768, 4096 * 31, 500000, 526335, 526336, 1 << 20};
    struct tzfs_answers *a = answering();
    struct tzfs_pump *pump = calloc(1, sizeof *pump);
    struct worker worker = {.buffer = {.mem = block(5000)}};
    struct { uint8_t *at, mark; size_t bytes; } taken[TAKEN] = {0};
    uint64_t state = seed;
    int fd = memfd_create("requests", 0); /* a socket takes less at once */
    if (!pump || fd < 0)
        abort();
    pump->turn_ns = tzfs_pump_now_ns();
    pump->turn_max_ns = pump->deadline_ns = INT64_MAX / 2;
    pump->answers = a;
    for (unsigned step = 0; step < 300; step++) {
        const size_t most = step % 3 ? sizes[drawn(&state) % (sizeof sizes / sizeof *sizes)] : 1 << 20;
        const size_t bytes = step % 3 ? most : 1 + drawn(&state) % most;
        const unsigned wrong = step % 16 == 15; /* the kernel sends none such; libfuse refuses it */
        uint8_t *request = block(HEAD + bytes), *payload = request + HEAD;
        const struct fuse_in_header in = {.len = (uint32_t)(HEAD + bytes), .opcode = FUSE_WRITE, .unique = step, .nodeid = 9};
        const struct fuse_write_in write_in = {.fh = 7, .offset = step, .size = (uint32_t)(bytes + wrong)};
        memcpy(request, &in, sizeof in);
        memcpy(request + sizeof in, &write_in, sizeof write_in);
        memset(payload, (int)step, bytes);
        EXPECT(ftruncate(fd, 0) == 0 && pwrite(fd, request, HEAD + bytes, 0) == (ssize_t)(HEAD + bytes));
        EXPECT(lseek(fd, 0, SEEK_SET) == 0);
        pump->at_once = step % 8 != 7;
        const int ours = pump->at_once && !wrong;
        EXPECT(tzfs_pump_wait(pump, fd, -1) == (ours ? TZFS_PUMP_WRITE : TZFS_PUMP_READY));
        if (ours) {
            EXPECT(pump->unique == step && pump->handle == 7 && pump->offset == step);
            EXPECT(pump->payload_bytes == bytes && !memcmp(pump->payload, payload, bytes));
            EXPECT(!((uintptr_t)pump->payload % 4096));
        }
        if (ours && step % 5) {
            const unsigned slot = drawn(&state) % TAKEN;
            if (step % 2) {
                uint8_t *at = tzfs_pump_take(pump);
                EXPECT(at && !((uintptr_t)at % 4096) && !memcmp(at, payload, bytes));
                for (size_t i = 0; i < taken[slot].bytes; i++)
                    if (taken[slot].at[i] != taken[slot].mark)
                        abort();
                tzfs_pump_free(taken[slot].at);
                taken[slot].at = at;
                taken[slot].bytes = bytes;
                taken[slot].mark = (uint8_t)step;
            }
            struct fuse_out_header out;
            struct fuse_write_out body = {0};
            const int64_t result = step % 3 ? (int64_t)bytes : -ENOSPC;
            const off_t end = lseek(fd, 0, SEEK_CUR);
            tzfs_pump_answer(pump, fd, result);
            EXPECT(pread(fd, &out, sizeof out, end) == sizeof out && out.unique == step);
            EXPECT(out.error == (result < 0 ? -ENOSPC : 0));
            EXPECT(lseek(fd, 0, SEEK_CUR) == end + out.len && out.len == sizeof out + (result < 0 ? 0 : sizeof body));
            EXPECT(result < 0 || (pread(fd, &body, sizeof body, end + (off_t)sizeof out) == sizeof body && body.size == bytes));
        } else { /* handed over, and nothing has been answered */
            EXPECT(receive(&fd, &worker.buffer) == (int)(HEAD + bytes) && worker.buffer.size == HEAD + bytes);
            EXPECT(!memcmp(worker.buffer.mem, request, HEAD + bytes));
        }
        free(request);
    }
    const uint64_t withdrawn = tzfs_pump_withdrawn();
    tzfs_pump_answer(pump, -1, 1);
    EXPECT(tzfs_pump_withdrawn() == withdrawn + 1);
    for (int i = 0; i < TAKEN; i++)
        tzfs_pump_free(taken[i].at);
    free(worker.buffer.mem);
    free(pump);
    tzfs_answers_free(a);
    close(fd);
}

void handing_over(void)
{
    char path[4096];
    const ssize_t length = readlink("/proc/self/exe", path, sizeof path - 32);
    if (length < 0)
        abort();
    strcpy(path + length, ".receiver.so"); /* built beside it */
    void *library = dlopen(path, RTLD_NOW), *symbol = library ? dlsym(library, "receive") : NULL;
    int (*receive)(void *, void *);
    if (!symbol)
        abort();
    memcpy(&receive, &symbol, sizeof receive);
    for (uint64_t seed = 0; seed < 3; seed++) {
        EXPECT(tzfs_pump_guard(path) == 0 && tzfs_pump_hands_over());
        EXPECT(tzfs_pump_guard(path) == 4);
        if (seed == 0) { /* what the pump alone has left */
            EXPECT(tzfs_pump_unguard() == 0 && !tzfs_pump_hands_over());
            EXPECT(tzfs_pump_guard(path) == 0);
        }
        session(receive, seed);
        EXPECT(tzfs_pump_unguard() == 0 && tzfs_pump_guard(path) == 0);
        writing(receive, seed);
        naming(receive);
        EXPECT(tzfs_pump_unguard() == 0);
        EXPECT(tzfs_pump_unguard() == 1);
    }
    dlclose(library);
}
