/* See codec.h. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "codec.h"
#include "payload.h"

#include <limits.h>
#include <lz4.h>
#include <string.h>
#include <zstd.h>

#define ZSTD_SLOW_LEVEL 4

static void sum_of(const uint8_t *data, size_t length, uint8_t *sum)
{
    uint32_t found = (uint32_t)XXH3_64bits(data, length);
    for (int i = 0; i < 4; i++)
        sum[i] = (uint8_t)(found >> (24 - 8 * i));
}

void *tzfs_compressor_make(void)
{
    return ZSTD_createCCtx();
}

void tzfs_compressor_free(void *compressor)
{
    ZSTD_freeCCtx(compressor);
}

static size_t with_lz4(const uint8_t *data, size_t length, uint8_t *target, size_t room)
{
    int made = LZ4_compress_default((const char *)data, (char *)target, (int)length, (int)room);
    return made > 0 ? (size_t)made : 0;
}

static size_t with_zstd(void *compressor, int level, const uint8_t *data, size_t length, uint8_t *target, size_t room)
{
    size_t made = ZSTD_compressCCtx(compressor, target, room, data, length, level);
    return ZSTD_isError(made) ? 0 : made;
}

static size_t compress(void *compressor, int codec, int level, const uint8_t *data, size_t length, uint8_t *target,
                       size_t room)
{
    if (length == 0 || room == 0 || length > LZ4_MAX_INPUT_SIZE || room > INT_MAX)
        return 0;
    if (codec == TZFS_CODEC_LZ4)
        return with_lz4(data, length, target, room);
    if (codec == TZFS_CODEC_ZSTD && compressor &&
        (level < ZSTD_SLOW_LEVEL || with_zstd(compressor, 1, data, length, target, room) > 0))
        return with_zstd(compressor, level, data, length, target, room);
    return 0;
}

size_t tzfs_encode(void *compressor, int codec, int level, const uint8_t *data, size_t length, uint8_t *target,
                   size_t room, uint8_t *sums)
{
    size_t made = compress(compressor, codec, level, data, length, target, room);
    if (made > 0)
        sum_of(target, made, sums);
    else
        tzfs_page_sums(data, length, sums);
    return made;
}

int tzfs_decompress(int codec, const uint8_t *stored, size_t stored_length, const uint8_t *sum, uint8_t *target,
                    size_t length)
{
    if (sum) {
        uint8_t found[4];
        sum_of(stored, stored_length, found);
        if (memcmp(found, sum, sizeof found) != 0)
            return 1;
    }
    if (stored_length > INT_MAX || length > INT_MAX)
        return 2;
    if (codec == TZFS_CODEC_LZ4)
        return LZ4_decompress_safe((const char *)stored, (char *)target, (int)stored_length, (int)length) ==
                       (int)length
                   ? 0
                   : 2;
    if (codec == TZFS_CODEC_ZSTD)
        return ZSTD_decompress(target, length, stored, stored_length) == length ? 0 : 2;
    return 3;
}
