/* See pump.h.
 *
 * `tzfs_pump_wait` is a function of its arguments and of two descriptors.  The guard is the one place in native/ that
 * keeps globals: a pyfuse3 process has one session, and the function that stands in for libfuse's has libfuse's
 * signature, so there is nowhere else to keep the original, or a request that has been read for it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pump.h"
#include "answers.h"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <linux/fuse.h>
#include <malloc.h>
#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SKIP_DOUBLINGS_MAX 4 /* one wait in 16 still spins, so that a burst is noticed within 16 requests */
#define UNPOLLED_MAX 4 /* reads without a look at what trio waits for, which costs as much as the read */

int64_t tzfs_pump_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int request_came(struct tzfs_pump *pump, uint64_t *counter)
{
    ++*counter;
    pump->failures = 0;
    pump->skip = 0;
    pump->woken = 0;
    return TZFS_PUMP_READY;
}

static int nothing_came(struct tzfs_pump *pump)
{
    pump->idle++;
    pump->woken = 0;
    return TZFS_PUMP_IDLE;
}

enum reading { NOTHING, HANDED_OVER, ANSWERED, GONE, AT_ONCE };
static enum reading read_request(struct tzfs_pump *pump, int fuse_fd, int polled);

int tzfs_pump_wait(struct tzfs_pump *pump, int fuse_fd, int wake_fd)
{
    struct pollfd fds[2] = {{.fd = fuse_fd, .events = POLLIN}, {.fd = wake_fd, .events = POLLIN}};
    const int64_t began = tzfs_pump_now_ns();
    const int64_t turn_due = pump->turn_ns + pump->turn_max_ns;
    const int64_t due = turn_due < pump->deadline_ns ? turn_due : pump->deadline_ns;
    int64_t entered = began, now = began; /* a request answered here enters anew */

    for (int spinning = 0;;) {
        if (now >= due) {
            pump->turns++;
            pump->spin_sum_ns += (uint64_t)(now - entered);
            return TZFS_PUMP_TURN;
        }
        enum reading reading = NOTHING;
        if (pump->answers && pump->unpolled < UNPOLLED_MAX) {
            pump->unpolled++;
            reading = read_request(pump, fuse_fd, 0);
        } else {
            pump->unpolled = 0;
            int found = poll(fds, wake_fd < 0 ? 1 : 2, 0);
            if (found < 0) {
                if (errno != EINTR)
                    return nothing_came(pump); /* trio will meet the same error and raise it */
                pump->turns++; /* a signal: Python's handler and trio's wake-up come first */
                return TZFS_PUMP_TURN;
            }
            /* Whoever waits for trio goes first, but not twice in a row: neither starves the other. */
            if (wake_fd >= 0 && fds[1].revents && !(pump->woken && fds[0].revents)) {
                pump->spin_sum_ns += (uint64_t)(now - entered);
                pump->wakes++;
                pump->woken = 1;
                return TZFS_PUMP_WOKEN;
            }
            if (fds[0].revents)
                reading = pump->answers ? read_request(pump, fuse_fd, 1) : HANDED_OVER;
        }
        if (reading != NOTHING) {
            pump->spin_sum_ns += (uint64_t)(now - entered);
            const int verdict = request_came(pump, spinning ? &pump->spun : &pump->ready);
            if (reading == HANDED_OVER)
                return verdict;
            if (reading == AT_ONCE)
                return (int)pump->asked;
            entered = now = tzfs_pump_now_ns();
            spinning = 0; /* the next one counts as there at once, or begins a spin */
            continue;
        }
        if (!spinning) {
            if (pump->spin_ns <= 0)
                return nothing_came(pump);
            if (pump->skip) {
                pump->skip--;
                return nothing_came(pump);
            }
        } else if (now - entered >= pump->spin_ns) {
            pump->vain++;
            pump->spin_sum_ns += (uint64_t)(now - entered);
            if (pump->failures < SKIP_DOUBLINGS_MAX)
                pump->failures++;
            pump->skip = (1u << pump->failures) - 1;
            return nothing_came(pump);
        }
        /* Not a pause instruction: on one processor the client could not run, and would never ask. */
        sched_yield();
        pump->yields++;
        spinning = 1;
        now = tzfs_pump_now_ns();
    }
}

/* -- the guard ------------------------------------------------------------------------------------------------------ */

typedef int receive_function(void *session, void *buffer);

static receive_function *original;
static receive_function **slot;
static struct relro {
    char *begin, *end; /* pages that the dynamic linker made read-only, if any */
} slot_relro;
static uint64_t received, withdrawn;

/* Requests are read by us so that what a WRITE carries begins on a page, and are copied to pyfuse3's memory: they are
 * small, or a WRITE that has to wait. */
enum {
    PAGE_BYTES = 4096,
    BUFFER_BYTES = (1 << 20) + PAGE_BYTES, /* libfuse's: 256 pages, and its headers */
    WRITE_HEAD_BYTES = sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in),
    WHOLE_BYTES_MIN = BUFFER_BYTES / 2, /* a payload that takes less of the memory it was read to leaves it */
    LIBFUSE_MAX = 316,
};
static char *landing;  /* where such a payload begins; in front of it the request, and what malloc gave */
static int hands_over; /* libfuse is one whose buffers we know */
static size_t waiting; /* bytes of the request that pyfuse3 has not taken yet, or that the caller may answer */

struct fuse_buffer { /* libfuse's `struct fuse_buf`, up to 3.16 */
    size_t size;
    int flags;
    void *mem;
    int fd;
    off_t position;
};

/* Memory for `bytes` from a page's beginning on, with room for a request's head before it.  malloc's own aligned memory
 * is not used again as well. */
static char *new_page(size_t bytes)
{
    const size_t before = WRITE_HEAD_BYTES + sizeof(char *);
    char *memory = malloc(before + PAGE_BYTES - 1 + bytes);
    if (!memory)
        return NULL;
    char *made = memory + before;
    made += -(uintptr_t)made & (PAGE_BYTES - 1);
    memcpy(made - before, &memory, sizeof memory);
    return made;
}

static void free_page(char *made)
{
    if (!made)
        return;
    char *memory;
    memcpy(&memory, made - WRITE_HEAD_BYTES - sizeof(char *), sizeof memory);
    free(memory);
}

static int asks(struct tzfs_pump *pump, int verdict, const void *payload, size_t bytes)
{
    pump->payload = payload;
    pump->payload_bytes = bytes;
    return verdict;
}

/* The same, where all of the `room` is a name, and the directory is one that may be changed. */
static int asks_by_name(struct tzfs_pump *pump, int verdict, const char *name, size_t room)
{
    const struct tzfs_answers *answers = pump->answers;
    if (!answers->enabled || !answers->writable || pump->node > answers->live_max)
        return 0;
    const size_t bytes = tzfs_answers_name_bytes(name, room);
    return bytes ? asks(pump, verdict, name, bytes) : 0;
}

/* The verdict of a request that the caller may answer, and the pump says what it asks for; else 0. */
static int asked(struct tzfs_pump *pump, const char *request, size_t bytes)
{
    const struct fuse_in_header *in = (const void *)request;
    const void *body = in + 1;
    if (bytes < sizeof *in || in->len != bytes)
        return 0;
    const size_t room = bytes - sizeof *in;
    pump->unique = in->unique;
    pump->node = in->nodeid;
    pump->uid = in->uid;
    pump->gid = in->gid;
    switch (in->opcode) {
    case FUSE_WRITE: {
        const struct fuse_write_in *write_in = body;
        if (room <= sizeof *write_in || write_in->size != room - sizeof *write_in)
            return 0;
        pump->handle = write_in->fh;
        pump->offset = write_in->offset;
        return asks(pump, TZFS_PUMP_WRITE, write_in + 1, write_in->size);
    }
    case FUSE_CREATE: {
        const struct fuse_create_in *create_in = body;
        if (room < sizeof *create_in)
            return 0;
        pump->mode = create_in->mode;
        pump->flags = create_in->flags;
        return asks_by_name(pump, TZFS_PUMP_CREATE, (const char *)(create_in + 1), room - sizeof *create_in);
    }
    case FUSE_UNLINK:
        return asks_by_name(pump, TZFS_PUMP_UNLINK, body, room);
    default:
        return 0;
    }
}

/* Reads the next request.  GONE: it was there, as `polled` says, and was withdrawn.  HANDED_OVER: pyfuse3 receives it, or
 * meets the error, itself. */
static enum reading read_request(struct tzfs_pump *pump, int fuse_fd, int polled)
{
    if (waiting || (!landing && !(landing = new_page(BUFFER_BYTES))))
        return HANDED_OVER;
    char *request = landing - WRITE_HEAD_BYTES;
    ssize_t bytes = read(fuse_fd, request, BUFFER_BYTES);
    if (bytes < 0 && errno == EAGAIN && !polled)
        return NOTHING;
    if (bytes < 0 && (errno == EAGAIN || errno == ENOENT || errno == EINTR)) {
        withdrawn++;
        return GONE;
    }
    if (bytes <= 0)
        return HANDED_OVER;
    if (tzfs_answers_try(pump->answers, fuse_fd, request, (size_t)bytes))
        return ANSWERED;
    waiting = (size_t)bytes;
    pump->asked = pump->at_once ? (uint32_t)asked(pump, request, waiting) : 0;
    return pump->asked ? AT_ONCE : HANDED_OVER;
}

void tzfs_pump_answer(struct tzfs_pump *pump, int fuse_fd, int64_t result)
{
    struct {
        struct fuse_out_header head;
        struct fuse_write_out body;
    } answer = {.head = {.len = sizeof answer, .unique = pump->unique}};
    if (result < 0) {
        answer.head.len = sizeof answer.head;
        answer.head.error = (int32_t)result;
    } else if (pump->asked == TZFS_PUMP_WRITE) {
        answer.body.size = (uint32_t)result;
    } else {
        answer.head.len = sizeof answer.head;
    }
    waiting = 0;
    if (write(fuse_fd, &answer, answer.head.len) < 0)
        withdrawn++; /* nobody waits for the answer any more */
}

void tzfs_pump_created(struct tzfs_pump *pump, int fuse_fd, uint64_t handle)
{
    waiting = 0;
    if (!tzfs_answers_created(pump->answers, fuse_fd, pump->unique, handle))
        withdrawn++;
}

void *tzfs_pump_take(struct tzfs_pump *pump)
{
    char *taken;
    waiting = 0;
    if (pump->payload_bytes >= WHOLE_BYTES_MIN) {
        taken = landing;
        landing = NULL;
    } else if ((taken = new_page(pump->payload_bytes))) {
        memcpy(taken, pump->payload, pump->payload_bytes);
    }
    pump->payload = NULL;
    return taken;
}

void tzfs_pump_free(void *taken)
{
    free_page(taken);
}

static int receive_guarded(void *session, void *buffer)
{
    if (waiting) {
        struct fuse_buffer *b = buffer;
        const int bytes = (int)waiting;
        if (b->mem && malloc_usable_size(b->mem) < BUFFER_BYTES) {
            free(b->mem);
            b->mem = NULL;
        }
        if (!b->mem && !(b->mem = malloc(BUFFER_BYTES)))
            return -ENOMEM;
        memcpy(b->mem, landing - WRITE_HEAD_BYTES, waiting);
        b->size = waiting;
        b->flags = 0;
        waiting = 0;
        received++;
        return bytes;
    }
    int result = original(session, buffer);
    received++;
    if (result == -EAGAIN) {
        withdrawn++;
        return -EINTR;
    }
    return result;
}

struct search {
    ElfW(Addr) base;
    struct relro relro;
};

static int find_relro(struct dl_phdr_info *info, size_t size, void *argument)
{
    struct search *search = argument;
    (void)size;
    if (info->dlpi_addr != search->base)
        return 0;
    const ElfW(Addr) page = (ElfW(Addr))sysconf(_SC_PAGESIZE);
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        if (header->p_type != PT_GNU_RELRO)
            continue;
        /* As the linker does it: only whole pages are protected. */
        search->relro.begin = (char *)((search->base + header->p_vaddr) & ~(page - 1));
        search->relro.end = (char *)((search->base + header->p_vaddr + header->p_memsz) & ~(page - 1));
    }
    return 1;
}

/* The slot through which `map` calls `name`: procedure-linkage and plain global-data relocations hold it, by linker. */
static receive_function **find_slot(const struct link_map *map, const char *name)
{
    const ElfW(Sym) *symbols = NULL;
    const char *strings = NULL;
    const ElfW(Rela) *tables[2] = {NULL, NULL};
    size_t counts[2] = {0, 0};

    for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; d++) {
        /* glibc relocates these in place, other linkers leave offsets. */
        const char *at = (const char *)(d->d_un.d_ptr < map->l_addr ? d->d_un.d_ptr + map->l_addr : d->d_un.d_ptr);
        switch (d->d_tag) {
        case DT_SYMTAB: symbols = (const void *)at; break;
        case DT_STRTAB: strings = at; break;
        case DT_JMPREL: tables[0] = (const void *)at; break;
        case DT_PLTRELSZ: counts[0] = d->d_un.d_val / sizeof(ElfW(Rela)); break;
        case DT_RELA: tables[1] = (const void *)at; break;
        case DT_RELASZ: counts[1] = d->d_un.d_val / sizeof(ElfW(Rela)); break;
        case DT_PLTREL:
            if (d->d_un.d_val != DT_RELA)
                return NULL;
            break;
        default: break;
        }
    }
    if (!symbols || !strings)
        return NULL;
    for (int t = 0; t < 2; t++) {
        for (size_t i = 0; tables[t] && i < counts[t]; i++) {
            const ElfW(Rela) *entry = &tables[t][i];
            const size_t symbol = sizeof(void *) == 8 ? ELF64_R_SYM(entry->r_info) : ELF32_R_SYM(entry->r_info);
            if (symbol && !strcmp(strings + symbols[symbol].st_name, name))
                return (receive_function **)(map->l_addr + entry->r_offset);
        }
    }
    return NULL;
}

static int write_slot(receive_function *value)
{
    char *at = (char *)slot;
    const int protected = at >= slot_relro.begin && at < slot_relro.end;
    const size_t bytes = (size_t)(slot_relro.end - slot_relro.begin);
    if (protected && mprotect(slot_relro.begin, bytes, PROT_READ | PROT_WRITE))
        return 3;
    *slot = value;
    if (protected)
        mprotect(slot_relro.begin, bytes, PROT_READ);
    return 0;
}

int tzfs_pump_guard(const char *path)
{
    static const char name[] = "fuse_session_receive_buf";
    if (slot)
        return 4;
    void *handle = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    struct link_map *map = NULL;
    if (!handle || dlinfo(handle, RTLD_DI_LINKMAP, &map) || !map) {
        if (handle)
            dlclose(handle);
        return 1;
    }
    struct search search = {.base = map->l_addr};
    dl_iterate_phdr(find_relro, &search);
    receive_function **found = find_slot(map, name);
    /* Through the handle, so that the object's own libfuse answers, whatever else the process has loaded. */
    void *target = found ? dlsym(handle, name) : NULL;
    void *version = found ? dlsym(handle, "fuse_version") : NULL;
    dlclose(handle);
    if (!found || !target)
        return 2;
    memcpy(&original, &target, sizeof original);
    hands_over = 0;
    if (version) {
        int (*ask)(void);
        memcpy(&ask, &version, sizeof ask);
        const int libfuse = ask(); /* 314 is 3.14 */
        hands_over = libfuse >= 300 && libfuse <= LIBFUSE_MAX && sysconf(_SC_PAGESIZE) == 4096;
    }
    slot = found;
    slot_relro = search.relro;
    int failed = write_slot(receive_guarded);
    if (failed)
        slot = NULL;
    return failed;
}

int tzfs_pump_unguard(void)
{
    if (!slot)
        return 1;
    int failed = write_slot(original);
    if (failed)
        return failed;
    slot = NULL;
    hands_over = 0;
    waiting = 0;
    free_page(landing);
    landing = NULL;
    return 0;
}

int tzfs_pump_hands_over(void)
{
    return hands_over;
}

uint64_t tzfs_pump_received(void)
{
    return received;
}

uint64_t tzfs_pump_withdrawn(void)
{
    return withdrawn;
}
