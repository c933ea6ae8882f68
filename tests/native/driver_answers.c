/* answers.c and replies.c: requests whole and malformed, random histories, bounds; and that the pump asks them. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "driver_answers.h"
#include "pump.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DIRECTORY = 5, ABSENT_NODE = 77 };

int ends[2];

uint64_t drawn(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

struct tzfs_answers *answering(void)
{
    struct tzfs_answers *a = tzfs_answers_new();
    if (!a)
        abort();
    a->enabled = a->writable = a->unchecked = 1;
    a->live_max = (UINT64_C(1) << 40) - 1;
    a->valid_s = 1000;
    a->writing = WRITING;
    return a;
}

void put(struct tzfs_answers *a, uint64_t node, uint32_t mode)
{
    tzfs_answers_put(a, node, mode, 1, 2, 3, 4, node, INT64_MIN, -1, INT64_MAX);
}

/* A request in a block of exactly its bytes, of which it says `said`. */
static int asked_as(struct tzfs_answers *a, uint32_t opcode, uint64_t node, const void *body, size_t bytes, size_t said)
{
    const size_t length = sizeof(struct fuse_in_header) + bytes;
    uint8_t *request = block(length);
    const struct fuse_in_header in = {.len = (uint32_t)said, .opcode = opcode, .unique = 9, .nodeid = node};
    memcpy(request, &in, sizeof in);
    if (bytes)
        memcpy(request + sizeof in, body, bytes);
    const int answered = tzfs_answers_try(a, ends[0], request, length);
    free(request);
    return answered;
}

static int asked(struct tzfs_answers *a, uint32_t opcode, uint64_t node, const void *body, size_t bytes)
{
    return asked_as(a, opcode, node, body, bytes, sizeof(struct fuse_in_header) + bytes);
}

size_t replied(uint8_t *reply)
{
    const ssize_t got = recv(ends[1], reply, REPLY_MAX, MSG_DONTWAIT);
    if (got <= 0)
        return 0;
    struct fuse_out_header out;
    memcpy(&out, reply, sizeof out);
    EXPECT(out.len == (size_t)got && out.unique == 9);
    return (size_t)got;
}

static void answers_whole(void)
{
    struct tzfs_answers *a = answering();
    uint8_t reply[REPLY_MAX];
    put(a, DIRECTORY, S_IFDIR | 0755);
    put(a, 9, S_IFREG | 0644);
    tzfs_answers_name(a, DIRECTORY, "there", 5, 9);
    EXPECT(!asked(a, FUSE_LOOKUP, DIRECTORY, "absent", 7));
    tzfs_answers_complete(a, DIRECTORY);
    EXPECT(asked(a, FUSE_LOOKUP, DIRECTORY, "absent", 7));
    EXPECT(replied(reply) == sizeof(struct fuse_out_header) + sizeof(struct fuse_entry_out));
    EXPECT(asked(a, FUSE_LOOKUP, DIRECTORY, "there", 6) && tzfs_answers_knows(a, 9));
    EXPECT(replied(reply) == sizeof(struct fuse_out_header) + sizeof(struct fuse_entry_out));
    struct fuse_entry_out entry;
    memcpy(&entry, reply + sizeof(struct fuse_out_header), sizeof entry);
    EXPECT(entry.nodeid == 9 && entry.attr.size == 9 && entry.attr.blocks == 8);
    EXPECT((int64_t)entry.attr.atime == -9223372037 && entry.attr.atimensec == 145224192);
    EXPECT((int64_t)entry.attr.mtime == -1 && entry.attr.mtimensec == 999999999);
    EXPECT((int64_t)entry.attr.ctime == 9223372036 && entry.attr.ctimensec == 854775807);

    const struct fuse_open_in open_in = {.flags = O_RDWR};
    const struct fuse_release_in release = {.fh = 9 | WRITING};
    uint64_t writers[2] = {0, 0};
    EXPECT(asked(a, FUSE_OPEN, 9, &open_in, sizeof open_in) && replied(reply));
    EXPECT(tzfs_answers_writers(a, writers, 2) == 1 && writers[0] == 9);
    EXPECT(tzfs_answers_writers(a, NULL, 0) == 1);
    EXPECT(asked(a, FUSE_RELEASE, 9, &release, sizeof release) && replied(reply) == sizeof(struct fuse_out_header));
    EXPECT(tzfs_answers_writers(a, writers, 2) == 0);
    EXPECT(asked(a, FUSE_RELEASE, 9, &release, sizeof release) && replied(reply)); /* which nobody has opened */

    tzfs_answers_tell(a, 9);
    const struct {
        struct fuse_batch_forget_in in;
        struct fuse_forget_one one[2];
    } many = {.in = {.count = 2}, .one = {{.nodeid = 9, .nlookup = UINT64_MAX}, {.nodeid = ABSENT_NODE, .nlookup = 1}}};
    EXPECT(asked(a, FUSE_BATCH_FORGET, 0, &many, sizeof many) && !replied(reply));
    EXPECT(!tzfs_answers_knows(a, 9) && a->forgotten == 1 && a->known == 0);
    uint64_t gone[2] = {0, 0};
    EXPECT(tzfs_answers_take(a, gone, 0) == 0);
    EXPECT(tzfs_answers_take(a, gone, 2) == 1 && gone[0] == 9);
    EXPECT(tzfs_answers_take(a, gone, 2) == 0);

    tzfs_answers_wrote(a, 9, 1, 2);
    tzfs_answers_wrote(a, ABSENT_NODE, 1, 2);
    tzfs_answers_drop(a, ABSENT_NODE);
    tzfs_answers_unname(a, DIRECTORY, "", 0);
    a->enabled = 0;
    EXPECT(!asked(a, FUSE_LOOKUP, DIRECTORY, "there", 6));
    tzfs_answers_free(a);
    tzfs_answers_free(NULL);
}

static void answers_malformed(void)
{
    static const uint32_t opcodes[] = {FUSE_LOOKUP, FUSE_GETATTR, FUSE_OPEN,         FUSE_RELEASE,
                                       FUSE_FORGET, FUSE_ACCESS,  FUSE_BATCH_FORGET, FUSE_WRITE,   FUSE_UNLINK, 9999};
    struct tzfs_answers *a = answering();
    uint8_t reply[REPLY_MAX];
    uint64_t state = 1;
    put(a, 9, S_IFREG);
    put(a, DIRECTORY, S_IFDIR);
    tzfs_answers_complete(a, DIRECTORY);
    tzfs_answers_told(a, 9);
    for (size_t o = 0; o < sizeof opcodes / sizeof opcodes[0]; o++) {
        for (size_t bytes = 0; bytes < 300; bytes++) {
            uint8_t *body = filled(bytes);
            const size_t length = sizeof(struct fuse_in_header) + bytes;
            for (size_t i = 0; i < 4; i++) {
                /* As it is; with small counts, of which the body may hold so many or not; without any NUL; zeros. */
                for (size_t b = 0; b < bytes; b++)
                    body[b] = (uint8_t)(i == 0 ? body[b] : i == 1 ? (b ? 0 : bytes / 8) : i == 2 ? 0xff : 0);
                a->room = UINT64_MAX;
                a->removes = 1;
                a->posted = 0;
                asked(a, opcodes[o], drawn(&state) & 1 ? 9 : DIRECTORY, body, bytes);
                while (replied(reply))
                    continue;
                EXPECT(!asked_as(a, opcodes[o], 9, body, bytes, length + 1));
                EXPECT(!asked_as(a, opcodes[o], 9, body, bytes, length - 1));
            }
            free(body);
        }
    }
    for (size_t bytes = 0; bytes < sizeof(struct fuse_in_header); bytes++) { /* less than a header */
        uint8_t *request = filled(bytes);
        if (bytes >= 4)
            memcpy(request, &(uint32_t){(uint32_t)bytes}, 4);
        EXPECT(!tzfs_answers_try(a, ends[0], request, bytes));
        free(request);
    }
    tzfs_answers_free(a);
}

static uint8_t marks[TZFS_ANSWERS_POSTED_MAX]; /* of what has been posted: each byte, of a name the last */

/* An unlink that may be posted or not. */
static void post_unlink(struct tzfs_answers *a, uint64_t directory, const char *name, size_t bytes)
{
    const uint64_t before = a->posted, room = a->room;
    if (asked(a, FUSE_UNLINK, directory, name, bytes + 1)) {
        const struct tzfs_posted *posted = tzfs_answers_posted(a) + before;
        EXPECT(a->posted == before + 1 && a->room == room && a->removes && bytes);
        EXPECT(posted->removes == 1 && posted->node == directory && posted->bytes == bytes && !memcmp(posted->payload, name, bytes));
        EXPECT(!asked(a, FUSE_UNLINK, directory, name, bytes + 1));
        marks[before] = (uint8_t)name[bytes - 1];
    } else {
        EXPECT(a->posted == before);
    }
}

/* A write that may be posted or not; what has been posted before is as it was. */
static void post(struct tzfs_answers *a, uint64_t node, uint64_t *state)
{
    static const uint64_t edges[] = {1, 4096, TZFS_ANSWERS_POSTED_BYTES_MAX, TZFS_ANSWERS_POSTED_BYTES_MAX + 1};
    const uint64_t drawn_size = drawn(state) % 300, size = drawn_size < 8 ? edges[drawn_size / 2] : drawn_size;
    struct fuse_write_in in = {.fh = node | (drawn(state) % 8 ? WRITING : 0), .size = (uint32_t)size};
    in.offset = drawn(state) % 8 == 0;
    uint8_t *body = block(sizeof in + size);
    const uint8_t mark = (uint8_t)drawn(state);
    memcpy(body, &in, sizeof in);
    memset(body + sizeof in, mark, size);
    const uint64_t before = a->posted, room = a->room;
    if (asked(a, FUSE_WRITE, node, body, sizeof in + size)) {
        EXPECT(a->posted == before + 1 && a->room + size < room && !in.offset && in.fh == (node | WRITING));
        marks[before] = mark;
    } else {
        EXPECT(a->posted == before && a->room == room);
    }
    free(body);
    const struct tzfs_posted *posted = tzfs_answers_posted(a);
    for (uint64_t i = 0; i < a->posted; i++)
        for (uint64_t b = posted[i].removes ? posted[i].bytes - 1 : 0; b < posted[i].bytes; b++)
            if ((uint8_t)posted[i].payload[b] != marks[i])
                abort();
    if (drawn(state) % 40 == 0) {
        a->posted = 0;
        a->room = drawn(state) % 4 * 40000;
        a->removes = drawn(state) % 4 != 0;
    }
}

static void answers_histories(void)
{
    struct tzfs_answers *a = answering();
    uint8_t reply[REPLY_MAX];
    uint64_t state = 7, nodes[16];
    for (int step = 0; step < 200000; step++) {
        const uint64_t tree = drawn(&state) % 4 << 40, node = (1 + drawn(&state) % 40) | tree;
        const uint64_t directory = (1 + drawn(&state) % 5) | tree;
        const size_t bytes = drawn(&state) % 256;
        char *name = (char *)filled(bytes + 1); /* never with a NUL before its end */
        for (size_t b = 0; b < bytes; b++)
            name[b] = (char)(name[b] | 1);
        name[bytes] = 0;
        const struct fuse_open_in open_in = {.flags = (uint32_t)drawn(&state) % 3};
        const struct fuse_release_in release = {.fh = node | (drawn(&state) & 1 ? WRITING : 0)};
        const struct fuse_forget_in forget = {.nlookup = drawn(&state) % 5};
        switch (drawn(&state) % 23) {
        case 0: put(a, node, S_IFREG | 0644); break;
        case 1: put(a, directory, S_IFDIR | 0755); break;
        case 2: tzfs_answers_drop(a, node); break;
        case 3: tzfs_answers_wrote(a, node, drawn(&state), -(int64_t)drawn(&state)); break;
        case 4: case 5: tzfs_answers_name(a, directory, name, bytes, node); break;
        case 6: if (drawn(&state) % 2) tzfs_answers_unname(a, directory, name, bytes); else tzfs_answers_removed(a, directory, name, bytes, node); break;
        case 7: tzfs_answers_complete(a, directory); break;
        case 8: tzfs_answers_told(a, node); break;
        case 9: tzfs_answers_tell(a, node); break;
        case 10: tzfs_answers_forget(a, node, drawn(&state) % 3); break;
        case 11: tzfs_answers_opened(a, node); break;
        case 12: tzfs_answers_closed(a, node); break;
        case 13: asked(a, FUSE_LOOKUP, directory, name, bytes + 1); break;
        case 14: asked(a, FUSE_OPEN, node, &open_in, sizeof open_in); break;
        case 15: asked(a, FUSE_RELEASE, node, &release, sizeof release); break;
        case 16: EXPECT(asked(a, FUSE_FORGET, node, &forget, sizeof forget)); break;
        case 17: tzfs_answers_take(a, nodes, drawn(&state) % 17); break;
        case 18: EXPECT(tzfs_answers_writers(a, nodes, 3) <= 160); break;
        case 19: case 20: post(a, node, &state); break;
        case 21: {
            tzfs_answers_name(a, directory, name, bytes, node);
            put(a, node, drawn(&state) % 4 ? S_IFREG : S_IFDIR);
            post_unlink(a, directory, name, bytes);
            break;
        }
        default:
            if (drawn(&state) % 500 == 0)
                tzfs_answers_clear(a);
        }
        while (replied(reply))
            continue;
        free(name);
    }
    EXPECT(a->name_count > 0 && a->node_count > 0 && a->known > 0 && a->known <= 160);
    tzfs_answers_free(a);
}

/* The bounds, made out to be near: a few names and nodes, and each new one drives one out. */
static void answers_crowded(void)
{
    struct tzfs_answers *a = answering();
    for (uint64_t n = 1; n <= 5; n++)
        tzfs_answers_name(a, DIRECTORY, (const char *)&n, sizeof n, n), put(a, n, S_IFREG);
    tzfs_answers_complete(a, DIRECTORY);
    a->name_count = TZFS_ANSWERS_NAMES_MAX;
    a->node_count = TZFS_ANSWERS_NODES_MAX;
    for (uint64_t n = 6; n <= 105; n++)
        tzfs_answers_name(a, DIRECTORY, (const char *)&n, sizeof n, n), put(a, n, S_IFREG);
    EXPECT(a->name_count == TZFS_ANSWERS_NAMES_MAX && a->node_count == TZFS_ANSWERS_NODES_MAX);
    EXPECT(a->evictions == 100);
    EXPECT(!asked(a, FUSE_LOOKUP, DIRECTORY, "absent", 7));
    tzfs_answers_free(a);
}

/* What the pump answers itself is counted as a request that was there, or that came in a spin. */
static void pumping_answers(void)
{
    struct tzfs_answers *a = answering();
    struct tzfs_pump *pump = calloc(1, sizeof *pump);
    if (!pump || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends))
        abort();
    put(a, 9, S_IFREG);
    pump->turn_max_ns = 1000000000;
    pump->turn_ns = tzfs_pump_now_ns();
    pump->deadline_ns = INT64_MAX;
    pump->answers = a;
    struct {
        struct fuse_in_header in;
        struct fuse_getattr_in body;
    } request = {.in = {.len = sizeof request, .opcode = FUSE_GETATTR, .unique = 9, .nodeid = 9}};
    for (int i = 0; i < 3; i++)
        EXPECT(write(ends[1], &request, sizeof request) == sizeof request);
    EXPECT(tzfs_pump_wait(pump, ends[0], -1) == TZFS_PUMP_IDLE);
    EXPECT(a->kinds[1].count == 3 && pump->ready == 3 && !pump->spun && !pump->vain && pump->idle == 1);
    uint8_t reply[REPLY_MAX];
    for (int i = 0; i < 3; i++)
        EXPECT(replied(reply) == sizeof(struct fuse_out_header) + sizeof(struct fuse_attr_out));
    int wake[2]; /* what waits for trio is seen while requests keep coming */
    EXPECT(pipe(wake) == 0 && write(wake[1], "", 1) == 1);
    for (int i = 0; i < 12; i++)
        EXPECT(write(ends[1], &request, sizeof request) == sizeof request);
    EXPECT(tzfs_pump_wait(pump, ends[0], wake[0]) == TZFS_PUMP_WOKEN);
    EXPECT(a->kinds[1].count >= 3 && a->kinds[1].count <= 3 + 4);
    EXPECT(tzfs_pump_wait(pump, ends[0], wake[0]) == TZFS_PUMP_WOKEN && a->kinds[1].count <= 3 + 4 + 5);
    close(wake[0]);
    close(wake[1]);
    EXPECT(tzfs_pump_wait(pump, ends[0], -1) == TZFS_PUMP_IDLE && a->kinds[1].count == 15);
    while (replied(reply))
        continue;
    request.in.opcode = FUSE_READLINK; /* handed over, once: the next is not read before that has been taken */
    EXPECT(write(ends[1], &request, sizeof request) == sizeof request);
    EXPECT(write(ends[1], &request, sizeof request) == sizeof request);
    EXPECT(tzfs_pump_wait(pump, ends[0], -1) == TZFS_PUMP_READY);
    EXPECT(tzfs_pump_wait(pump, ends[0], -1) == TZFS_PUMP_READY);
    EXPECT(recv(ends[0], reply, REPLY_MAX, MSG_DONTWAIT) == sizeof request);
    EXPECT(recv(ends[0], reply, REPLY_MAX, MSG_DONTWAIT) < 0);
    EXPECT(!replied(reply));
    free(pump);
    tzfs_answers_free(a);
    close(ends[0]);
    close(ends[1]);
}

void answering_requests(void)
{
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends))
        abort();
    answers_whole();
    answers_malformed();
    answers_histories();
    answers_crowded();
    close(ends[0]);
    close(ends[1]);
    pumping_answers();
    handing_over();
}
