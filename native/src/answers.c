/* See answers.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "answers_tables.h"
#include "hash.h"

#include <stdlib.h>
#include <string.h>

enum {
    PAGE_SHIFT = 12, /* counts lie in pages of neighbouring nodes, 16 KiB each, 4 bytes a node of a walked tree */
    PAGE_NODES = 1 << PAGE_SHIFT,
};
#define TELL (UINT32_C(1) << 31) /* in a count */

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
void tzfs_answers_let_go(struct tzfs_answers *a, uint64_t node, uint64_t times)
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

struct node **tzfs_answers_node_slot(struct tzfs_answers *a, uint64_t id)
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
    struct node *at = *tzfs_answers_node_slot(a, id);
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
    struct node *at = *tzfs_answers_node_slot(a, node);
    if (!at || !at->has_attr)
        return;
    set_size(&at->attr, size);
    split_time(now_ns, &at->attr.mtime, &at->attr.mtimensec);
    split_time(now_ns, &at->attr.ctime, &at->attr.ctimensec);
}

void tzfs_answers_drop(struct tzfs_answers *a, uint64_t node)
{
    struct node *at = *tzfs_answers_node_slot(a, node);
    if (at)
        at->has_attr = 0;
}

/* -- names ----------------------------------------------------------------------------------------------------------- */

size_t tzfs_answers_name_bytes(const char *text, size_t room)
{
    const size_t bytes = strnlen(text, room);
    return bytes + 1 == room && bytes <= TZFS_ANSWERS_NAME_BYTES_MAX ? bytes : 0;
}

uint32_t tzfs_answers_hash(uint64_t directory, const char *text, size_t bytes)
{
    uint64_t h = tzfs_fnv1a64((const uint8_t *)text, bytes, TZFS_FNV_OFFSET ^ directory * UINT64_C(0x9E3779B97F4A7C15));
    return (uint32_t)(h ^ h >> 32);
}

struct name **tzfs_answers_name_slot(struct tzfs_answers *a, uint64_t directory, const char *text, size_t bytes, uint32_t hash)
{
    struct name **at = &a->tables->names[hash & (NAME_BUCKETS - 1)];
    while (*at && !((*at)->hash == hash && (*at)->directory == directory && (*at)->bytes == bytes
                    && !memcmp((*at)->text, text, bytes)))
        at = &(*at)->next;
    return at;
}

static void incomplete(struct tzfs_answers *a, uint64_t directory)
{
    struct node *at = *tzfs_answers_node_slot(a, directory);
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
    uint32_t hash = tzfs_answers_hash(directory, name, bytes);
    struct name *at = *tzfs_answers_name_slot(a, directory, name, bytes, hash);
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
    struct name **slot = tzfs_answers_name_slot(a, directory, name, bytes, tzfs_answers_hash(directory, name, bytes)), *at = *slot;
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
