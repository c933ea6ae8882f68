/* What the kernel asks most, answered without Python: a cache of attributes and names, look-up counts, open writers.
 *
 * The operations class (tzfs/mount/operations.py) keeps the cache current in the same step that changes the engine, on
 * the thread that also waits in the pump; nothing here locks.  An answer is given only where the cache is sure of what
 * the operations class would say; everything else is left to it.
 *
 * Owned here, and exact: how often the kernel has been told of each node, and which nodes are open for writing.
 * A cache, bounded, of which anything may be dropped at any time: attributes by node, names by (directory, name).
 * Invariants:
 * - An attribute or a name that is here is what the engine says.
 * - A directory is `complete` while every name in it is here; a name that is not here is then absent from it.
 *   What drops a name of a directory other than by removal takes its completeness away.
 * - A node marked `tell` that the kernel forgets is put on the list that `tzfs_answers_take` empties.
 *
 * Some changes are *posted*, answered before they are done, since nothing can refuse them: small writes that replace all
 * that a file has, so that they need nothing that could be unreadable, and fit into the `room` that the caller has said
 * there is; and, while it says `removes`, unlinks of entries that are here.  The caller does what has been posted, in order,
 * before anything else that it does.
 *
 * The one part of native/ that allocates: it outlives calls by its nature.  Where memory is short it caches less.
 */
#ifndef TZFS_ANSWERS_H
#define TZFS_ANSWERS_H

#include <stddef.h>
#include <stdint.h>

enum {
    TZFS_ANSWERS_KINDS = 9,        /* look-up, getattr, open, release, forget, batch forget, access, write, unlink */
    TZFS_ANSWERS_NODES_MAX = 1 << 17, /* 120 bytes each: 16 MB */
    TZFS_ANSWERS_NAMES_MAX = 1 << 18, /* about 70 bytes each: 18 MB */
    TZFS_ANSWERS_NAME_BYTES_MAX = 255,
    TZFS_ANSWERS_POSTED_MAX = 32,     /* done in 200 us, which somebody waits for */
    TZFS_ANSWERS_POSTED_BYTES_MAX = 8192, /* of each write */
};

struct tzfs_answers_kind {
    uint64_t count;
    uint64_t total_ns;
    uint64_t slowest_ns;
};

struct tzfs_posted { /* from `now_ns` on, node `node` has these `bytes` bytes; or no entry of that name, if `removes` */
    uint64_t node;
    int64_t now_ns;
    uint64_t bytes;
    const char *payload;
    uint32_t removes;
};

struct tzfs_answers {
    /* set by the caller */
    uint32_t enabled;      /* 0: nothing is cached and nothing answered; counts are kept all the same */
    uint32_t writable;     /* nodes up to live_max may be opened for writing */
    uint32_t unchecked;    /* `access` is asked here, on behalf of root */
    uint32_t node_count;   /* cached attributes */
    uint64_t live_max;     /* node ids up to here are in the writable tree */
    uint64_t valid_s;      /* how long what is answered holds */
    uint64_t writing;      /* the bit of a file handle that says that it may write */
    uint64_t known;        /* nodes that the kernel knows */
    uint64_t name_count;   /* cached names */
    uint64_t evictions;    /* names dropped for want of room */
    uint64_t forgotten;    /* on the list for `tzfs_answers_take` */
    uint64_t room;         /* set by the caller: bytes on the disk that writes may be posted for */
    uint64_t posted;       /* changes that are to be done; the caller sets it to 0 when they are */
    uint32_t removes;      /* set by the caller: unlinks may be posted */
    struct tzfs_answers_kind kinds[TZFS_ANSWERS_KINDS];
    struct tzfs_answers_tables *tables;
};

/* NULL where memory is short.  `live_max` and the like are the caller's to set before use. */
struct tzfs_answers *tzfs_answers_new(void);
void tzfs_answers_free(struct tzfs_answers *a);

/* -- counts ---------------------------------------------------------------------------------------------------------- */

void tzfs_answers_told(struct tzfs_answers *a, uint64_t node);
/* 1: the kernel does not know the node any more. */
int tzfs_answers_forget(struct tzfs_answers *a, uint64_t node, uint64_t count);
int tzfs_answers_knows(const struct tzfs_answers *a, uint64_t node);
/* The node is to be on the list when the kernel forgets it. */
void tzfs_answers_tell(struct tzfs_answers *a, uint64_t node);
/* Takes up to `room` nodes off the list; how many. */
size_t tzfs_answers_take(struct tzfs_answers *a, uint64_t *nodes, size_t room);

void tzfs_answers_opened(struct tzfs_answers *a, uint64_t node);
void tzfs_answers_closed(struct tzfs_answers *a, uint64_t node);
/* The nodes open for writing, at most `room` of them; how many there are. */
size_t tzfs_answers_writers(const struct tzfs_answers *a, uint64_t *nodes, size_t room);

/* -- the cache ------------------------------------------------------------------------------------------------------- */

void tzfs_answers_put(struct tzfs_answers *a, uint64_t node, uint32_t mode, uint32_t links, uint32_t uid, uint32_t gid,
                      uint32_t device, uint64_t size, int64_t atime_ns, int64_t mtime_ns, int64_t ctime_ns);
/* Of a node whose attributes are here, after a write. */
void tzfs_answers_wrote(struct tzfs_answers *a, uint64_t node, uint64_t size, int64_t now_ns);
void tzfs_answers_drop(struct tzfs_answers *a, uint64_t node);
void tzfs_answers_name(struct tzfs_answers *a, uint64_t directory, const char *name, size_t bytes, uint64_t node);
void tzfs_answers_unname(struct tzfs_answers *a, uint64_t directory, const char *name, size_t bytes);
/* The entry is gone: what `unname` and `drop` of both nodes do, and `tell` of what it named. */
void tzfs_answers_removed(struct tzfs_answers *a, uint64_t directory, const char *name, size_t bytes, uint64_t node);
void tzfs_answers_complete(struct tzfs_answers *a, uint64_t directory);
/* Everything that is cached goes; counts stay. */
void tzfs_answers_clear(struct tzfs_answers *a);

/* Answers the CREATE `unique` on `fd`: of the handle's node the kernel has been told, its attributes are here, and it has
 * been opened.  0: the kernel did not take it, and what was counted is taken back. */
int tzfs_answers_created(struct tzfs_answers *a, int fd, uint64_t unique, uint64_t handle);

/* The changes that have been posted, in order, `posted` of them. */
const struct tzfs_posted *tzfs_answers_posted(const struct tzfs_answers *a);

/* The bytes of the name that takes all of `room`, its end included; 0: that is none which an entry can have. */
size_t tzfs_answers_name_bytes(const char *text, size_t room);

/* Answers the request on `fd`: 1, and it is done; or 0, and it is the caller's. */
int tzfs_answers_try(struct tzfs_answers *a, int fd, const void *request, size_t bytes);

#endif
