/* What the parts of the driver share: see driver.c. */
#ifndef TZFS_TESTS_DRIVER_H
#define TZFS_TESTS_DRIVER_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

extern int failures;

#define EXPECT(condition)                                                            \
    do {                                                                             \
        if (!(condition)) {                                                          \
            failures++;                                                              \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);  \
        }                                                                            \
    } while (0)

/* Of exactly `length` bytes; of none, a block that must not be touched at all. */
uint8_t *block(size_t length);
/* `block` with bytes in it that only the length decides. */
uint8_t *filled(size_t length);

/* In driver_codec.c. */
void compressing(void);
/* In driver_answers.c. */
void answering_requests(void);

#endif
