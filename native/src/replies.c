/* The requests that are answered from the tables of answers.c, and the changes that are posted. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "answers_tables.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { LOOKUP, GETATTR, OPEN, RELEASE, FORGET, BATCH_FORGET, ACCESS, WRITE, UNLINK }; /* indexes of `kinds` */
enum { DISK_PAGE_BYTES = 4096 };

/* False where the kernel has withdrawn the request meanwhile, and so knows nothing of the answer. */
static int reply(int fd, uint64_t unique, int error, const void *body, size_t bytes)
{
    struct fuse_out_header head = {.len = (uint32_t)(sizeof head + bytes), .error = error, .unique = unique};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)(uintptr_t)body, bytes}};
    return writev(fd, parts, bytes ? 2 : 1) >= 0;
}

static struct fuse_entry_out entry_of(const struct tzfs_answers *a, const struct node *node)
{
    return (struct fuse_entry_out){
        .nodeid = node->id, .entry_valid = a->valid_s, .attr_valid = a->valid_s, .attr = node->attr};
}

static int lookup(struct tzfs_answers *a, int fd, const struct fuse_in_header *in, const char *text, size_t room)
{
    const size_t bytes = tzfs_answers_name_bytes(text, room);
    if (!bytes)
        return 0;
    struct name *name = *tzfs_answers_name_slot(a, in->nodeid, text, bytes, tzfs_answers_hash(in->nodeid, text, bytes));
    if (!name) {
        struct node *directory = *tzfs_answers_node_slot(a, in->nodeid);
        if (!directory || !directory->complete)
            return 0;
        directory->used = 1;
        struct fuse_entry_out out = {.entry_valid = a->valid_s};
        reply(fd, in->unique, 0, &out, sizeof out); /* node 0: it is absent, and may be remembered so */
        return 1;
    }
    struct node *node = *tzfs_answers_node_slot(a, name->node);
    if (!node || !node->has_attr)
        return 0;
    name->used = node->used = 1;
    struct fuse_entry_out out = entry_of(a, node);
    tzfs_answers_told(a, node->id);
    if (!reply(fd, in->unique, 0, &out, sizeof out))
        tzfs_answers_let_go(a, out.nodeid, 1);
    return 1;
}

static int getattr(struct tzfs_answers *a, int fd, const struct fuse_in_header *in)
{
    struct node *node = *tzfs_answers_node_slot(a, in->nodeid);
    if (!node || !node->has_attr)
        return 0;
    node->used = 1;
    struct fuse_attr_out out = {.attr_valid = a->valid_s, .attr = node->attr};
    reply(fd, in->unique, 0, &out, sizeof out);
    return 1;
}

static int open_file(struct tzfs_answers *a, int fd, const struct fuse_in_header *in, uint32_t flags)
{
    int writes = (flags & O_ACCMODE) != O_RDONLY;
    if (flags & O_TRUNC || (writes && !(a->writable && in->nodeid <= a->live_max)))
        return 0;
    struct fuse_open_out out = {.fh = in->nodeid, .open_flags = FOPEN_KEEP_CACHE};
    if (writes) {
        out.fh |= a->writing;
        tzfs_answers_opened(a, in->nodeid);
    }
    if (!reply(fd, in->unique, 0, &out, sizeof out) && writes)
        tzfs_answers_closed(a, in->nodeid);
    return 1;
}

int tzfs_answers_created(struct tzfs_answers *a, int fd, uint64_t unique, uint64_t handle)
{
    const uint64_t id = handle & ~a->writing;
    const struct node *node = *tzfs_answers_node_slot(a, id);
    int taken = 0;
    if (node && node->has_attr) {
        struct {
            struct fuse_entry_out entry;
            struct fuse_open_out open;
        } out = {entry_of(a, node), {.fh = handle, .open_flags = FOPEN_KEEP_CACHE}};
        taken = reply(fd, unique, 0, &out, sizeof out);
    } else {
        reply(fd, unique, -ENOMEM, NULL, 0); /* else it would be here */
    }
    if (!taken) {
        tzfs_answers_let_go(a, id, 1);
        if (handle & a->writing)
            tzfs_answers_closed(a, id);
    }
    return taken;
}

static int access_checked(struct tzfs_answers *a, int fd, const struct fuse_in_header *in, uint32_t mask)
{
    if (!a->unchecked)
        return 0;
    struct node *node = *tzfs_answers_node_slot(a, in->nodeid);
    if (!node || !node->has_attr)
        return 0;
    node->used = 1;
    int refused = mask & X_OK && !S_ISDIR(node->attr.mode) && !(node->attr.mode & 0111);
    reply(fd, in->unique, refused ? -EACCES : 0, NULL, 0);
    return 1;
}

const struct tzfs_posted *tzfs_answers_posted(const struct tzfs_answers *a)
{
    return a->tables->posted;
}

/* The next change, of which there is room for one, as of now. */
static struct tzfs_posted *next_posted(struct tzfs_answers *a, uint64_t node, const void *payload, size_t bytes)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tzfs_posted *posted = &a->tables->posted[a->posted];
    char *kept = a->tables->payloads[a->posted];
    memcpy(kept, payload, bytes);
    *posted = (struct tzfs_posted){.node = node, .bytes = bytes, .payload = kept,
                                   .now_ns = (int64_t)now.tv_sec * INT64_C(1000000000) + now.tv_nsec};
    a->posted++;
    return posted;
}

static int post_write(struct tzfs_answers *a, int fd, const struct fuse_in_header *in, const struct fuse_write_in *write_in)
{
    const uint64_t size = write_in->size;
    /* and a page for each of the chunks it may lie in, which may be two */
    const uint64_t cost = (size + 3 * DISK_PAGE_BYTES - 1) / DISK_PAGE_BYTES * DISK_PAGE_BYTES;
    if (cost > a->room || a->posted == TZFS_ANSWERS_POSTED_MAX || size == 0 || size > TZFS_ANSWERS_POSTED_BYTES_MAX ||
        write_in->offset != 0 || in->nodeid > a->live_max || write_in->fh != (in->nodeid | a->writing))
        return 0;
    struct node *node = *tzfs_answers_node_slot(a, in->nodeid);
    if (!node || !node->has_attr || !S_ISREG(node->attr.mode) || size < node->attr.size)
        return 0;
    const struct tzfs_posted *posted = next_posted(a, in->nodeid, write_in + 1, size);
    tzfs_answers_wrote(a, in->nodeid, size, posted->now_ns);
    node->used = 1;
    a->room -= cost;
    struct fuse_write_out out = {.size = (uint32_t)size};
    reply(fd, in->unique, 0, &out, sizeof out);
    return 1;
}

static int post_unlink(struct tzfs_answers *a, int fd, const struct fuse_in_header *in, const char *text, size_t room)
{
    const size_t bytes = tzfs_answers_name_bytes(text, room);
    if (!bytes || !a->removes || a->posted == TZFS_ANSWERS_POSTED_MAX || in->nodeid > a->live_max)
        return 0;
    const struct name *name =
        *tzfs_answers_name_slot(a, in->nodeid, text, bytes, tzfs_answers_hash(in->nodeid, text, bytes));
    const struct node *node = name ? *tzfs_answers_node_slot(a, name->node) : NULL;
    if (!node || !node->attr.mode || S_ISDIR(node->attr.mode)) /* that stays, when other attributes have changed */
        return 0;
    next_posted(a, in->nodeid, text, bytes)->removes = 1;
    tzfs_answers_removed(a, in->nodeid, text, bytes, node->id);
    reply(fd, in->unique, 0, NULL, 0);
    return 1;
}

/* The index of the request's kind, or -1 where it is not for us. */
static int answer(struct tzfs_answers *a, int fd, const struct fuse_in_header *in, size_t bytes)
{
    const void *body = in + 1;
    const size_t room = bytes - sizeof *in;
    switch (in->opcode) {
    case FUSE_LOOKUP:
        return lookup(a, fd, in, body, room) ? LOOKUP : -1;
    case FUSE_GETATTR:
        return room >= sizeof(struct fuse_getattr_in) && getattr(a, fd, in) ? GETATTR : -1;
    case FUSE_OPEN: {
        const struct fuse_open_in *open_in = body;
        return room >= sizeof *open_in && open_file(a, fd, in, open_in->flags) ? OPEN : -1;
    }
    case FUSE_RELEASE: {
        const struct fuse_release_in *release = body;
        if (room < sizeof *release)
            return -1;
        if (release->fh & a->writing)
            tzfs_answers_closed(a, release->fh & ~a->writing);
        reply(fd, in->unique, 0, NULL, 0);
        return RELEASE;
    }
    case FUSE_FORGET: {
        const struct fuse_forget_in *one = body;
        if (room < sizeof *one)
            return -1;
        tzfs_answers_let_go(a, in->nodeid, one->nlookup);
        return FORGET; /* nobody waits for an answer */
    }
    case FUSE_BATCH_FORGET: {
        const struct fuse_batch_forget_in *many = body;
        const struct fuse_forget_one *one = (const void *)(many + 1);
        if (room < sizeof *many || (room - sizeof *many) / sizeof *one < many->count)
            return -1;
        for (uint32_t i = 0; i < many->count; i++)
            tzfs_answers_let_go(a, one[i].nodeid, one[i].nlookup);
        return BATCH_FORGET;
    }
    case FUSE_ACCESS: {
        const struct fuse_access_in *access_in = body;
        return room >= sizeof *access_in && access_checked(a, fd, in, access_in->mask) ? ACCESS : -1;
    }
    case FUSE_WRITE: {
        const struct fuse_write_in *write_in = body;
        return room > sizeof *write_in && write_in->size == room - sizeof *write_in && post_write(a, fd, in, write_in)
                   ? WRITE
                   : -1;
    }
    case FUSE_UNLINK:
        return post_unlink(a, fd, in, body, room) ? UNLINK : -1;
    default:
        return -1;
    }
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

int tzfs_answers_try(struct tzfs_answers *a, int fd, const void *request, size_t bytes)
{
    const struct fuse_in_header *in = request;
    if (!a->enabled || bytes < sizeof *in || in->len != bytes)
        return 0;
    const uint64_t began = now_ns();
    int kind = answer(a, fd, in, bytes);
    if (kind < 0)
        return 0;
    struct tzfs_answers_kind *statistics = &a->kinds[kind];
    statistics->count++;
    if (kind == WRITE || kind == UNLINK)
        return 1; /* what it takes is to do it */
    const uint64_t took = now_ns() - began;
    statistics->total_ns += took;
    if (took > statistics->slowest_ns)
        statistics->slowest_ns = took;
    return 1;
}
