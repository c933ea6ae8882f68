/* See hash.h. */
#include "hash.h"

#include <string.h>

#define FNV_PRIME UINT64_C(0x100000001b3)
#define RECORD_VERSION 1

static inline uint64_t mix(uint64_t hash, uint8_t byte)
{
    return (hash ^ byte) * FNV_PRIME;
}

uint64_t tzfs_fnv1a64(const uint8_t *data, size_t length, uint64_t seed)
{
    uint64_t hash = seed;
    for (size_t i = 0; i < length; i++)
        hash = mix(hash, data[i]);
    return hash;
}

uint32_t tzfs_record_sum(uint8_t table, const uint8_t *key, size_t key_length, uint8_t version,
                         const uint8_t *body, size_t body_length)
{
    uint64_t hash = mix(TZFS_FNV_OFFSET, table);
    hash = mix(hash, (uint8_t)(key_length >> 8));
    hash = mix(hash, (uint8_t)key_length);
    hash = tzfs_fnv1a64(key, key_length, hash);
    hash = mix(hash, version);
    hash = tzfs_fnv1a64(body, body_length, hash);
    return (uint32_t)(hash >> 32) ^ (uint32_t)hash;
}

static uint64_t load(const uint8_t *at, size_t bytes)
{
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; i++)
        value = value << 8 | at[i];
    return value;
}

static int envelope_matches(uint8_t table, const uint8_t *key, size_t key_length, const uint8_t *value, size_t length)
{
    if (length < TZFS_ENVELOPE_BYTES)
        return 0;
    return load(value + 1, 4) == tzfs_record_sum(table, key, key_length, value[0], value + TZFS_ENVELOPE_BYTES,
                                                 length - TZFS_ENVELOPE_BYTES);
}

int64_t tzfs_verify_many(uint8_t table, const uint8_t *keys, const uint32_t *key_lengths,
                         const uint8_t *values, const uint32_t *value_lengths, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!envelope_matches(table, keys, key_lengths[i], values, value_lengths[i]))
            return (int64_t)i;
        keys += key_lengths[i];
        values += value_lengths[i];
    }
    return -1;
}

void tzfs_seal_many(uint8_t table, uint8_t version, const uint8_t *keys, const uint32_t *key_lengths,
                    const uint8_t *bodies, const uint32_t *body_lengths, size_t count, uint8_t *sealed)
{
    for (size_t i = 0; i < count; i++) {
        const uint32_t sum = tzfs_record_sum(table, keys, key_lengths[i], version, bodies, body_lengths[i]);
        *sealed++ = version;
        for (int shift = 24; shift >= 0; shift -= 8)
            *sealed++ = (uint8_t)(sum >> shift);
        if (body_lengths[i])
            memcpy(sealed, bodies, body_lengths[i]);
        sealed += body_lengths[i];
        bodies += body_lengths[i];
        keys += key_lengths[i];
    }
}

int64_t tzfs_decode_inodes(uint8_t table, const uint8_t *keys, size_t key_length,
                           const uint8_t *values, const uint32_t *value_lengths, size_t count,
                           uint64_t *columns)
{
    static const uint8_t widths[TZFS_INODE_COLUMNS] = {4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 8, 4, 1, 8};
    for (size_t i = 0; i < count; i++) {
        if (!envelope_matches(table, keys, key_length, values, value_lengths[i]) || values[0] != RECORD_VERSION ||
            value_lengths[i] < TZFS_ENVELOPE_BYTES + TZFS_INODE_BYTES)
            return (int64_t)i;
        const uint8_t *at = values + TZFS_ENVELOPE_BYTES;
        for (size_t c = 0; c < TZFS_INODE_COLUMNS; c++) {
            *columns++ = load(at, widths[c]);
            at += widths[c];
        }
        keys += key_length;
        values += value_lengths[i];
    }
    return -1;
}
