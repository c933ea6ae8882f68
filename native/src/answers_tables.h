/* What answers.c keeps and replies.c answers from; for these two alone. */
#ifndef TZFS_ANSWERS_TABLES_H
#define TZFS_ANSWERS_TABLES_H

#include "answers.h"

#include <linux/fuse.h>

enum {
    NODE_BUCKETS = TZFS_ANSWERS_NODES_MAX,
    NAME_BUCKETS = TZFS_ANSWERS_NAMES_MAX,
    PAGE_BUCKETS = 1 << 12,
    WRITER_BUCKETS = 1 << 10,
};

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

/* Where the node, or the name, is or would be. */
struct node **tzfs_answers_node_slot(struct tzfs_answers *a, uint64_t id);
struct name **tzfs_answers_name_slot(struct tzfs_answers *a, uint64_t directory, const char *text, size_t bytes,
                                     uint32_t hash);
uint32_t tzfs_answers_hash(uint64_t directory, const char *text, size_t bytes);

/* The kernel has forgotten the node so many times. */
void tzfs_answers_let_go(struct tzfs_answers *a, uint64_t node, uint64_t times);

#endif
