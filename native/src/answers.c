/* See answers.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "answers.h"
#include "hash.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    LOOKUP, GETATTR, OPEN, RELEASE, FORGET, BATCH_FORGET, ACCESS, WRITE, /* indexes of `kinds` */
    NODE_BUCKETS = TZFS_ANSWERS_NODES_MAX,
    NAME_BUCKETS = TZFS_ANSWERS_NAMES_MAX,
    PAGE_SHIFT = 12, /* counts lie in pages of neighbouring nodes, 16 KiB each, 4 bytes a node of a walked tree */
    PAGE_NODES = 1 << PAGE_SHIFT,
    PAGE_BUCKETS = 1 << 12,
    WRITER_BUCKETS = 1 << 10,
    DISK_PAGE_BYTES = 4096,
};
#define TELL (UINT32_C(1) << 31) /* in a count */

struct node {
    struct node *next;
    uint64_t id;
    struct fuse_attr attr;
    uint8_t has_attr, complete, used;
};

struct name {
    struct name *next;
    uint64_t directory, node;
    uint32_t hash;
    uint8_t bytes, used;
    char text[];
};

struct page {
    struct page *next;
    uint64_t number;
    uint32_t known;
    uint32_t counts[PAGE_NODES];
};

struct writer {
    struct writer *next;
    uint64_t node, handles;
};

struct tzfs_answers_tables {
    struct node *nodes[NODE_BUCKETS];
    struct name *names[NAME_BUCKETS];
    struct page *pages[PAGE_BUCKETS];
    struct writer *writers[WRITER_BUCKETS];
    uint32_t node_hand, name_hand; /* where the search for something to drop goes on */
    uint64_t *forgotten;
    size_t forgotten_room;
    struct tzfs_posted posted[TZFS_ANSWERS_POSTED_MAX];
    char payloads[TZFS_ANSWERS_POSTED_MAX][TZFS_ANSWERS_POSTED_BYTES_MAX];
};

struct tzfs_answers *tzfs_answers_new(void)
{
    struct tzfs_answers *a = calloc(1, sizeof *a);
    if (a && !(a->tables = calloc(1, sizeof *a->tables))) { /* 3 MiB of zeros, of which only what is used is memory */
        free(a);
        a = NULL;
    }
    return a;
}

#define FREE_ALL(type, table, buckets)                      \
    for (size_t b = 0; b < (buckets); b++)                  \
        for (struct type *at = (table)[b], *next; at; at = next) { \
            next = at->next;                                \
            free(at);                                       \
        }

void tzfs_answers_free(struct tzfs_answers *a)
{
    if (!a)
        return;
    struct tzfs_answers_tables *t = a->tables;
    FREE_ALL(node, t->nodes, NODE_BUCKETS)
    FREE_ALL(name, t->names, NAME_BUCKETS)
    FREE_ALL(page, t->pages, PAGE_BUCKETS)
    FREE_ALL(writer, t->writers, WRITER_BUCKETS)
    free(t->forgotten);
    free(t);
    free(a);
}

static size_t spread(uint64_t key, size_t buckets)
{
    return (size_t)((key * UINT64_C(0x9E3779B97F4A7C15)) >> 32) & (buckets - 1);
}

/* -- counts ---------------------------------------------------------------------------------------------------------- */

static struct page **page_slot(const struct tzfs_answers *a, uint64_t number)
{
    struct page **at = &a->tables->pages[spread(number, PAGE_BUCKETS)];
    while (*at && (*at)->number != number)
        at = &(*at)->next;
    return at;
}

static uint32_t *count_of(const struct tzfs_answers *a, uint64_t node)
{
    struct page *page = *page_slot(a, node >> PAGE_SHIFT);
    return page ? &page->counts[node & (PAGE_NODES - 1)] : NULL;
}

void tzfs_answers_told(struct tzfs_answers *a, uint64_t node)
{
    struct page **slot = page_slot(a, node >> PAGE_SHIFT), *page = *slot;
    if (!page) {
        page = calloc(1, sizeof *page);
        if (!page)
            abort(); /* a count that is lost would let a file vanish that is in use */
        page->number = node >> PAGE_SHIFT;
        *slot = page;
    }
    uint32_t *count = &page->counts[node & (PAGE_NODES - 1)];
    if (!*count) {
        page->known++;
        a->known++;
    }
    ++*count;
}

int tzfs_answers_forget(struct tzfs_answers *a, uint64_t node, uint64_t count)
{
    struct page **slot = page_slot(a, node >> PAGE_SHIFT), *page = *slot;
    if (!page)
        return 1;
    uint32_t *at = &page->counts[node & (PAGE_NODES - 1)];
    uint32_t told = *at & ~TELL;
    if (count < told) {
        *at -= (uint32_t)count;
        return 0;
    }
    if (*at) {
        *at = 0;
        a->known--;
        if (!--page->known) {
            *slot = page->next;
            free(page);
        }
    }
    return 1;
}

int tzfs_answers_knows(const struct tzfs_answers *a, uint64_t node)
{
    const uint32_t *count = count_of(a, node);
    return count && *count;
}

void tzfs_answers_tell(struct tzfs_answers *a, uint64_t node)
{
    uint32_t *count = count_of(a, node);
    if (count && *count)
        *count |= TELL;
}

/* The kernel forgets: what is to be told of goes on the list. */
static void forget(struct tzfs_answers *a, uint64_t node, uint64_t times)
{
    const uint32_t *count = count_of(a, node);
    int tell = count && *count & TELL;
    if (!tzfs_answers_forget(a, node, times) || !tell)
        return;
    struct tzfs_answers_tables *t = a->tables;
    if (a->forgotten == t->forgotten_room) {
        size_t room = t->forgotten_room ? 2 * t->forgotten_room : 256;
        uint64_t *grown = realloc(t->forgotten, room * sizeof *grown);
        if (!grown)
            return; /* the inode lives until the mount ends, and is buried then */
        t->forgotten = grown;
        t->forgotten_room = room;
    }
    t->forgotten[a->forgotten++] = node;
}

size_t tzfs_answers_take(struct tzfs_answers *a, uint64_t *nodes, size_t room)
{
    size_t taken = a->forgotten < room ? (size_t)a->forgotten : room;
    a->forgotten -= taken;
    if (taken)
        memcpy(nodes, a->tables->forgotten + a->forgotten, taken * sizeof *nodes);
    return taken;
}

static struct writer **writer_slot(const struct tzfs_answers *a, uint64_t node)
{
    struct writer **at = &a->tables->writers[spread(node, WRITER_BUCKETS)];
    while (*at && (*at)->node != node)
        at = &(*at)->next;
    return at;
}

void tzfs_answers_opened(struct tzfs_answers *a, uint64_t node)
{
    struct writer **slot = writer_slot(a, node);
    if (!*slot) {
        *slot = calloc(1, sizeof **slot);
        if (!*slot)
            abort(); /* a snapshot would miss what this handle has dirtied */
        (*slot)->node = node;
    }
    (*slot)->handles++;
}

void tzfs_answers_closed(struct tzfs_answers *a, uint64_t node)
{
    struct writer **slot = writer_slot(a, node), *at = *slot;
    if (at && !--at->handles) {
        *slot = at->next;
        free(at);
    }
}

size_t tzfs_answers_writers(const struct tzfs_answers *a, uint64_t *nodes, size_t room)
{
    size_t found = 0;
    for (size_t b = 0; b < WRITER_BUCKETS; b++)
        for (const struct writer *at = a->tables->writers[b]; at; at = at->next, found++)
            if (found < room)
                nodes[found] = at->node;
    return found;
}

/* -- attributes ------------------------------------------------------------------------------------------------------ */

static struct node **node_slot(struct tzfs_answers *a, uint64_t id)
{
    struct node **at = &a->tables->nodes[spread(id, NODE_BUCKETS)];
    while (*at && (*at)->id != id)
        at = &(*at)->next;
    return at;
}

static void evict_node(struct tzfs_answers *a)
{
    struct tzfs_answers_tables *t = a->tables;
    for (;;) {
        t->node_hand = (t->node_hand + 1) & (NODE_BUCKETS - 1);
        for (struct node **slot = &t->nodes[t->node_hand]; *slot; slot = &(*slot)->next) {
            struct node *at = *slot;
            if (!at->used) {
                *slot = at->next;
                free(at);
                a->node_count--;
                return;
            }
            at->used = 0;
        }
    }
}

static struct node *node_for(struct tzfs_answers *a, uint64_t id)
{
    struct node *at = *node_slot(a, id);
    if (!at) {
        if (a->node_count >= TZFS_ANSWERS_NODES_MAX)
            evict_node(a);
        at = calloc(1, sizeof *at);
        if (!at)
            return NULL;
        struct node **bucket = &a->tables->nodes[spread(id, NODE_BUCKETS)];
        at->id = id;
        at->next = *bucket;
        *bucket = at;
        a->node_count++;
    }
    at->used = 1;
    return at;
}

static void split_time(int64_t ns, uint64_t *seconds, uint32_t *rest)
{
    int64_t s = ns / 1000000000, r = ns % 1000000000;
    if (r < 0) { /* before 1970 the rest still counts upwards */
        r += 1000000000;
        s--;
    }
    *seconds = (uint64_t)s;
    *rest = (uint32_t)r;
}

static void set_size(struct fuse_attr *attr, uint64_t size)
{
    attr->size = size;
    attr->blocks = (size + 4095) >> 12 << 3;
}

void tzfs_answers_put(struct tzfs_answers *a, uint64_t node, uint32_t mode, uint32_t links, uint32_t uid, uint32_t gid,
                      uint32_t device, uint64_t size, int64_t atime_ns, int64_t mtime_ns, int64_t ctime_ns)
{
    if (!a->enabled)
        return;
    struct node *at = node_for(a, node);
    if (!at)
        return;
    struct fuse_attr *attr = &at->attr;
    attr->ino = node;
    attr->mode = mode;
    attr->nlink = links;
    attr->uid = uid;
    attr->gid = gid;
    attr->rdev = device;
    attr->blksize = 4096;
    set_size(attr, size);
    split_time(atime_ns, &attr->atime, &attr->atimensec);
    split_time(mtime_ns, &attr->mtime, &attr->mtimensec);
    split_time(ctime_ns, &attr->ctime, &attr->ctimensec);
    at->has_attr = 1;
}

void tzfs_answers_wrote(struct tzfs_answers *a, uint64_t node, uint64_t size, int64_t now_ns)
{
    struct node *at = *node_slot(a, node);
    if (!at || !at->has_attr)
        return;
    set_size(&at->attr, size);
    split_time(now_ns, &at->attr.mtime, &at->attr.mtimensec);
    split_time(now_ns, &at->attr.ctime, &at->attr.ctimensec);
}

void tzfs_answers_drop(struct tzfs_answers *a, uint64_t node)
{
    struct node *at = *node_slot(a, node);
    if (at)
        at->has_attr = 0;
}

/* -- names ----------------------------------------------------------------------------------------------------------- */

static uint32_t hash_of(uint64_t directory, const char *text, size_t bytes)
{
    uint64_t h = tzfs_fnv1a64((const uint8_t *)text, bytes, TZFS_FNV_OFFSET ^ directory * UINT64_C(0x9E3779B97F4A7C15));
    return (uint32_t)(h ^ h >> 32);
}

static struct name **name_slot(struct tzfs_answers *a, uint64_t directory, const char *text, size_t bytes, uint32_t hash)
{
    struct name **at = &a->tables->names[hash & (NAME_BUCKETS - 1)];
    while (*at && !((*at)->hash == hash && (*at)->directory == directory && (*at)->bytes == bytes
                    && !memcmp((*at)->text, text, bytes)))
        at = &(*at)->next;
    return at;
}

static void incomplete(struct tzfs_answers *a, uint64_t directory)
{
    struct node *at = *node_slot(a, directory);
    if (at)
        at->complete = 0;
    a->evictions++; /* whoever is about to say that a directory is complete looks here */
}

static void evict_name(struct tzfs_answers *a)
{
    struct tzfs_answers_tables *t = a->tables;
    for (;;) {
        t->name_hand = (t->name_hand + 1) & (NAME_BUCKETS - 1);
        for (struct name **slot = &t->names[t->name_hand]; *slot; slot = &(*slot)->next) {
            struct name *at = *slot;
            if (!at->used) {
                *slot = at->next;
                incomplete(a, at->directory);
                free(at);
                a->name_count--;
                return;
            }
            at->used = 0;
        }
    }
}

void tzfs_answers_name(struct tzfs_answers *a, uint64_t directory, const char *name, size_t bytes, uint64_t node)
{
    if (!a->enabled || bytes > TZFS_ANSWERS_NAME_BYTES_MAX)
        return;
    uint32_t hash = hash_of(directory, name, bytes);
    struct name *at = *name_slot(a, directory, name, bytes, hash);
    if (!at) {
        if (a->name_count >= TZFS_ANSWERS_NAMES_MAX)
            evict_name(a);
        at = malloc(sizeof *at + bytes);
        if (!at) {
            incomplete(a, directory);
            return;
        }
        struct name **bucket = &a->tables->names[hash & (NAME_BUCKETS - 1)];
        at->directory = directory;
        at->hash = hash;
        at->bytes = (uint8_t)bytes;
        memcpy(at->text, name, bytes);
        at->next = *bucket;
        *bucket = at;
        a->name_count++;
    }
    at->used = 1;
    at->node = node;
}

void tzfs_answers_unname(struct tzfs_answers *a, uint64_t directory, const char *name, size_t bytes)
{
    struct name **slot = name_slot(a, directory, name, bytes, hash_of(directory, name, bytes)), *at = *slot;
    if (!at)
        return;
    *slot = at->next;
    free(at);
    a->name_count--;
}

void tzfs_answers_removed(struct tzfs_answers *a, uint64_t directory, const char *name, size_t bytes, uint64_t node)
{
    tzfs_answers_unname(a, directory, name, bytes);
    tzfs_answers_drop(a, directory);
    tzfs_answers_drop(a, node);
    tzfs_answers_tell(a, node);
}

void tzfs_answers_complete(struct tzfs_answers *a, uint64_t directory)
{
    if (!a->enabled)
        return;
    struct node *at = node_for(a, directory);
    if (at)
        at->complete = 1;
}

void tzfs_answers_clear(struct tzfs_answers *a)
{
    struct tzfs_answers_tables *t = a->tables;
    FREE_ALL(node, t->nodes, NODE_BUCKETS)
    FREE_ALL(name, t->names, NAME_BUCKETS)
    memset(t->nodes, 0, sizeof t->nodes);
    memset(t->names, 0, sizeof t->names);
    a->node_count = 0;
    a->name_count = 0;
    a->evictions++;
}

/* -- answering ------------------------------------------------------------------------------------------------------- */

/* False where the kernel has withdrawn the request meanwhile, and so knows nothing of the answer. */
static int reply(int fd, uint64_t unique, int error, const void *body, size_t bytes)
{
    struct fuse_out_header head = {.len = (uint32_t)(sizeof head + bytes), .error = error, .unique = unique};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)(uintptr_t)body, bytes}};
    return writev(fd, parts, bytes ? 2 : 1) >= 0;
}

static int lookup(struct tzfs_answers *a, int fd, const struct fuse_in_header *in, const char *text, size_t room)
{
    size_t bytes = strnlen(text, room);
    if (bytes == room || bytes == 0 || bytes > TZFS_ANSWERS_NAME_BYTES_MAX)
        return 0;
    struct name *name = *name_slot(a, in->nodeid, text, bytes, hash_of(in->nodeid, text, bytes));
    struct fuse_entry_out out = {.entry_valid = a->valid_s};
    if (!name) {
        struct node *directory = *node_slot(a, in->nodeid);
        if (!directory || !directory->complete)
            return 0;
        directory->used = 1;
        reply(fd, in->unique, 0, &out, sizeof out); /* node 0: it is absent, and may be remembered so */
        return 1;
    }
    struct node *node = *node_slot(a, name->node);
    if (!node || !node->has_attr)
        return 0;
    name->used = node->used = 1;
    out.nodeid = node->id;
    out.attr_valid = a->valid_s;
    out.attr = node->attr;
    tzfs_answers_told(a, node->id);
    if (!reply(fd, in->unique, 0, &out, sizeof out))
        forget(a, out.nodeid, 1);
    return 1;
}

static int getattr(struct tzfs_answers *a, int fd, const struct fuse_in_header *in)
{
    struct node *node = *node_slot(a, in->nodeid);
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

static int access_checked(struct tzfs_answers *a, int fd, const struct fuse_in_header *in, uint32_t mask)
{
    if (!a->unchecked)
        return 0;
    struct node *node = *node_slot(a, in->nodeid);
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

static int post(struct tzfs_answers *a, int fd, const struct fuse_in_header *in, const struct fuse_write_in *write_in)
{
    const uint64_t size = write_in->size;
    const uint64_t cost = (size + 2 * DISK_PAGE_BYTES - 1) / DISK_PAGE_BYTES * DISK_PAGE_BYTES; /* and a page */
    if (cost > a->room || a->posted == TZFS_ANSWERS_POSTED_MAX || size == 0 || size > TZFS_ANSWERS_POSTED_BYTES_MAX ||
        write_in->offset != 0 || in->nodeid > a->live_max || write_in->fh != (in->nodeid | a->writing))
        return 0;
    struct node *node = *node_slot(a, in->nodeid);
    if (!node || !node->has_attr || !S_ISREG(node->attr.mode) || size < node->attr.size)
        return 0;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tzfs_posted *posted = &a->tables->posted[a->posted];
    char *payload = a->tables->payloads[a->posted];
    memcpy(payload, write_in + 1, size);
    *posted = (struct tzfs_posted){.node = in->nodeid, .bytes = size, .payload = payload,
                                   .now_ns = (int64_t)now.tv_sec * INT64_C(1000000000) + now.tv_nsec};
    tzfs_answers_wrote(a, in->nodeid, size, posted->now_ns);
    node->used = 1;
    a->posted++;
    a->room -= cost;
    struct fuse_write_out out = {.size = (uint32_t)size};
    reply(fd, in->unique, 0, &out, sizeof out);
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
        forget(a, in->nodeid, one->nlookup);
        return FORGET; /* nobody waits for an answer */
    }
    case FUSE_BATCH_FORGET: {
        const struct fuse_batch_forget_in *many = body;
        const struct fuse_forget_one *one = (const void *)(many + 1);
        if (room < sizeof *many || (room - sizeof *many) / sizeof *one < many->count)
            return -1;
        for (uint32_t i = 0; i < many->count; i++)
            forget(a, one[i].nodeid, one[i].nlookup);
        return BATCH_FORGET;
    }
    case FUSE_ACCESS: {
        const struct fuse_access_in *access_in = body;
        return room >= sizeof *access_in && access_checked(a, fd, in, access_in->mask) ? ACCESS : -1;
    }
    case FUSE_WRITE: {
        const struct fuse_write_in *write_in = body;
        return room > sizeof *write_in && write_in->size == room - sizeof *write_in && post(a, fd, in, write_in) ? WRITE : -1;
    }
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
    const uint64_t took = now_ns() - began;
    statistics->count++;
    statistics->total_ns += took;
    if (took > statistics->slowest_ns)
        statistics->slowest_ns = took;
    return 1;
}
