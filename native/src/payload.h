/* Payload: page checksums, the zero test, and putting a read together.  Pure functions over (pointer, length). */
#ifndef TZFS_PAYLOAD_H
#define TZFS_PAYLOAD_H

#include <stddef.h>
#include <stdint.h>

#define TZFS_PAGE_BYTES 4096

/* For each page of `data`, the last of which may be short, the low 32 bits of its XXH3, big-endian, into `sums`. */
void tzfs_page_sums(const uint8_t *data, size_t length, uint8_t *sums);

/* The first page whose sum is not the one in `sums`, or -1. */
int64_t tzfs_pages_match(const uint8_t *data, size_t length, const uint8_t *sums);

int tzfs_is_zero(const uint8_t *data, size_t length);

/* Copies each piece to its offset and zeros what lies between.  Offsets ascend, pieces do not overlap and end at or
 * before `length`: the caller has checked. */
void tzfs_gather(uint8_t *target, size_t length, const uint8_t *const *pieces, const size_t *offsets,
                 const size_t *lengths, size_t count);

#endif
