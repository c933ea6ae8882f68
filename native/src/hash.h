/* FNV-1a and the checksums of records.  Pure functions over (pointer, length). */
#ifndef TZFS_HASH_H
#define TZFS_HASH_H

#include <stddef.h>
#include <stdint.h>

#define TZFS_FNV_OFFSET UINT64_C(0xcbf29ce484222325)

enum {
    TZFS_ENVELOPE_BYTES = 5,   /* version u8, sum u32 */
    TZFS_INODE_BYTES = 85,     /* the fixed part of an inode's body, see tzfs/format/FORMAT.md */
    TZFS_INODE_COLUMNS = 14,   /* its fields */
};

uint64_t tzfs_fnv1a64(const uint8_t *data, size_t length, uint64_t seed);

/* The checksum of a record: FNV-1a-64 over table, key length (u16), key, version and body, folded to 32 bits. */
uint32_t tzfs_record_sum(uint8_t table, const uint8_t *key, size_t key_length, uint8_t version,
                         const uint8_t *body, size_t body_length);

/* The index of the first value whose envelope does not match, or -1; keys and values lie one after another. */
int64_t tzfs_verify_many(uint8_t table, const uint8_t *keys, const uint32_t *key_lengths,
                         const uint8_t *values, const uint32_t *value_lengths, size_t count);

/* Packs records: the envelope (version, sum) and the body of each, one after another, into `sealed`, which has room for
 * all bodies and TZFS_ENVELOPE_BYTES for each. */
void tzfs_seal_many(uint8_t table, uint8_t version, const uint8_t *keys, const uint32_t *key_lengths,
                    const uint8_t *bodies, const uint32_t *body_lengths, size_t count, uint8_t *sealed);

/* Verifies and unpacks inode records of version 1: TZFS_INODE_COLUMNS integers each into `columns`, signed ones as
 * their two's complement.  The index of the first that is damaged, or -1.  Keys are all of `key_length`. */
int64_t tzfs_decode_inodes(uint8_t table, const uint8_t *keys, size_t key_length,
                           const uint8_t *values, const uint32_t *value_lengths, size_t count,
                           uint64_t *columns);

#endif
