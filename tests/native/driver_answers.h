/* What the parts of the driver that answer requests share; in driver_answers.c. */
#ifndef TZFS_TESTS_DRIVER_ANSWERS_H
#define TZFS_TESTS_DRIVER_ANSWERS_H

#include "answers.h"
#include "driver.h"

enum { REPLY_MAX = 4096 };
#define WRITING (UINT64_C(1) << 63)

extern int ends[2]; /* what is answered on the first is read from the second */

uint64_t drawn(uint64_t *state);
/* Answers that know nothing yet. */
struct tzfs_answers *answering(void);
/* Attributes that only the node decides. */
void put(struct tzfs_answers *a, uint64_t node, uint32_t mode);
/* The bytes of the reply that is there, which are in `reply`; 0: there is none. */
size_t replied(uint8_t *reply);

/* In driver_handing_over.c. */
void handing_over(void);

#endif
