/* See payload.h. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "payload.h"

#include <string.h>

static uint32_t page_sum(const uint8_t *data, size_t length)
{
    return (uint32_t)XXH3_64bits(data, length);
}

static size_t page_length(size_t left)
{
    return left < TZFS_PAGE_BYTES ? left : TZFS_PAGE_BYTES;
}

void tzfs_page_sums(const uint8_t *data, size_t length, uint8_t *sums)
{
    for (size_t at = 0; at < length; at += TZFS_PAGE_BYTES) {
        uint32_t sum = page_sum(data + at, page_length(length - at));
        *sums++ = (uint8_t)(sum >> 24);
        *sums++ = (uint8_t)(sum >> 16);
        *sums++ = (uint8_t)(sum >> 8);
        *sums++ = (uint8_t)sum;
    }
}

int64_t tzfs_pages_match(const uint8_t *data, size_t length, const uint8_t *sums)
{
    for (size_t at = 0; at < length; at += TZFS_PAGE_BYTES) {
        uint32_t sum = page_sum(data + at, page_length(length - at));
        uint32_t want = (uint32_t)sums[0] << 24 | (uint32_t)sums[1] << 16 | (uint32_t)sums[2] << 8 | sums[3];
        if (sum != want)
            return (int64_t)(at / TZFS_PAGE_BYTES);
        sums += 4;
    }
    return -1;
}

int tzfs_is_zero(const uint8_t *data, size_t length)
{
    return length == 0 || (data[0] == 0 && memcmp(data, data + 1, length - 1) == 0);
}

void tzfs_gather(uint8_t *target, size_t length, const uint8_t *const *pieces, const size_t *offsets,
                 const size_t *lengths, size_t count)
{
    size_t end = 0;
    for (size_t i = 0; i < count; i++) {
        if (offsets[i] > end)
            memset(target + end, 0, offsets[i] - end);
        if (lengths[i] > 0)
            memcpy(target + offsets[i], pieces[i], lengths[i]);
        end = offsets[i] + lengths[i];
    }
    if (end < length)
        memset(target + end, 0, length - end);
}
