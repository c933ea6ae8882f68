/* Exercises every function of native/src under the sanitizers: `tests/native/sanitize.py` builds and runs it.
 *
 * Each buffer is a heap block of exactly the length the function is told, so that one byte read or written beyond it
 * is an error.  The lengths are those around which the loops turn: nothing, one byte, and one less and one more than a
 * page.  Where a value is known from elsewhere it is compared; else two ways to the same answer are.
 *
 * Exit code 0: everything held.  1: an expectation failed, which is printed; or the sanitizer found an error.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "driver.h"
#include "falloc.h"
#include "hash.h"
#include "payload.h"
#include "pump.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int failures;

static const size_t edges[] = {0, 1, 2, 3, 7, 8, 16, 17, 128, 129, 240, 241, 1023, 1024, 1025, 4095, 4096, 4097, 8191,
                               8192, 8193, 131071, 131072, 131073};
enum { EDGES = sizeof edges / sizeof edges[0] };

uint8_t *block(size_t length)
{
    uint8_t *made = malloc(length);
    if (!made && length)
        abort();
    return made;
}

uint8_t *filled(size_t length)
{
    uint8_t *made = block(length);
    uint64_t state = 0x9e3779b97f4a7c15u ^ length;
    for (size_t i = 0; i < length; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        made[i] = (uint8_t)(state >> 56);
    }
    return made;
}

static uint8_t *copied(const char *text)
{
    uint8_t *made = block(strlen(text));
    memcpy(made, text, strlen(text));
    return made;
}

static void store(uint8_t *at, size_t bytes, uint64_t value)
{
    for (size_t i = 0; i < bytes; i++)
        at[i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
}

/* -- hash.c --------------------------------------------------------------------------------------------------------- */

static void fnv(void)
{
    static const struct {
        const char *text;
        uint64_t hash;
    } known[] = {
        {"", 0xcbf29ce484222325u},
        {"a", 0xaf63dc4c8601ec8cu},
        {"foobar", 0x85944171f73967e8u},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        uint8_t *data = copied(known[i].text);
        EXPECT(tzfs_fnv1a64(data, strlen(known[i].text), TZFS_FNV_OFFSET) == known[i].hash);
        free(data);
    }
    EXPECT(tzfs_fnv1a64(NULL, 0, 17) == 17);
    for (size_t i = 0; i < EDGES; i++) {
        uint8_t *data = filled(edges[i]);
        const size_t half = edges[i] / 2;
        const uint64_t first = tzfs_fnv1a64(data, half, TZFS_FNV_OFFSET);
        EXPECT(tzfs_fnv1a64(data, edges[i], TZFS_FNV_OFFSET) == tzfs_fnv1a64(data + half, edges[i] - half, first));
        free(data);
    }
}

static void record_sums(void)
{
    for (size_t k = 0; k < 6; k++) {
        for (size_t b = 0; b < EDGES; b++) {
            /* The same bytes in one piece. */
            uint8_t *key = filled(edges[k]), *body = filled(edges[b]);
            const size_t length = 1 + 2 + edges[k] + 1 + edges[b];
            uint8_t *all = block(length);
            all[0] = 7;
            store(all + 1, 2, edges[k]);
            memcpy(all + 3, key, edges[k]);
            all[3 + edges[k]] = 1;
            memcpy(all + 4 + edges[k], body, edges[b]);
            const uint64_t hash = tzfs_fnv1a64(all, length, TZFS_FNV_OFFSET);
            EXPECT(tzfs_record_sum(7, key, edges[k], 1, body, edges[b]) == ((uint32_t)(hash >> 32) ^ (uint32_t)hash));
            free(all);
            free(body);
            free(key);
        }
    }
}

static void seal(uint8_t table, const uint8_t *key, size_t key_length, uint8_t version, uint8_t *value, size_t length)
{
    value[0] = version;
    store(value + 1, 4, tzfs_record_sum(table, key, key_length, version, value + 5, length - 5));
}

static void verifying(void)
{
    enum { COUNT = 5 };
    static const uint32_t key_lengths[COUNT] = {8, 0, 272, 1, 16};
    static const uint32_t value_lengths[COUNT] = {5, 6, 4005, 90, 5};
    size_t keys_length = 0, values_length = 0;
    for (size_t i = 0; i < COUNT; i++) {
        keys_length += key_lengths[i];
        values_length += value_lengths[i];
    }
    uint8_t *keys = filled(keys_length), *values = filled(values_length);
    size_t key_at = 0, value_at = 0, starts[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        starts[i] = value_at;
        seal(3, keys + key_at, key_lengths[i], 1, values + value_at, value_lengths[i]);
        key_at += key_lengths[i];
        value_at += value_lengths[i];
    }
    EXPECT(tzfs_verify_many(3, keys, key_lengths, values, value_lengths, COUNT) == -1);
    EXPECT(tzfs_verify_many(4, keys, key_lengths, values, value_lengths, COUNT) == 0);
    EXPECT(tzfs_verify_many(3, NULL, NULL, NULL, NULL, 0) == -1);

    uint32_t body_lengths[COUNT];
    uint8_t *bodies = block(values_length), *sealed = block(values_length), *body = bodies;
    for (size_t i = 0; i < COUNT; i++) {
        body_lengths[i] = value_lengths[i] - TZFS_ENVELOPE_BYTES;
        memcpy(body, values + starts[i] + TZFS_ENVELOPE_BYTES, body_lengths[i]);
        body += body_lengths[i];
    }
    tzfs_seal_many(3, 1, keys, key_lengths, bodies, body_lengths, COUNT, sealed);
    EXPECT(!memcmp(sealed, values, values_length));
    tzfs_seal_many(3, 1, NULL, NULL, NULL, NULL, 0, NULL);
    free(bodies);
    free(sealed);

    for (size_t i = 0; i < COUNT; i++) {
        for (size_t at = 0; at < value_lengths[i]; at += 3) {
            values[starts[i] + at] ^= 0x10;
            EXPECT(tzfs_verify_many(3, keys, key_lengths, values, value_lengths, COUNT) == (int64_t)i);
            values[starts[i] + at] ^= 0x10;
        }
    }
    free(values);
    free(keys);
    for (uint32_t length = 0; length < 5; length++) { /* less than an envelope */
        uint8_t *key = filled(8), *value = filled(length);
        const uint32_t key_length = 8;
        EXPECT(tzfs_verify_many(1, key, &key_length, value, &length, 1) == 0);
        free(value);
        free(key);
    }
}

static void decoding(void)
{
    enum { COUNT = 3, FIXED = TZFS_ENVELOPE_BYTES + TZFS_INODE_BYTES };
    static const uint8_t widths[TZFS_INODE_COLUMNS] = {4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 8, 4, 1, 8};
    static const uint32_t lengths[COUNT] = {FIXED, FIXED + 1, FIXED + 255};
    uint8_t *keys = filled(COUNT * 16), *values = filled(lengths[0] + lengths[1] + lengths[2]);
    uint64_t *columns = malloc(COUNT * TZFS_INODE_COLUMNS * sizeof *columns);
    if (!columns)
        abort();
    uint8_t *at = values;
    for (size_t i = 0; i < COUNT; i++) {
        seal(1, keys + 16 * i, 16, 1, at, lengths[i]);
        at += lengths[i];
    }
    EXPECT(tzfs_decode_inodes(1, keys, 16, values, lengths, COUNT, columns) == -1);
    at = values;
    for (size_t i = 0; i < COUNT; i++) {
        const uint8_t *field = at + TZFS_ENVELOPE_BYTES;
        for (size_t c = 0; c < TZFS_INODE_COLUMNS; c++) {
            uint8_t again[8];
            store(again, widths[c], columns[i * TZFS_INODE_COLUMNS + c]);
            EXPECT(!memcmp(again, field, widths[c]));
            field += widths[c];
        }
        at += lengths[i];
    }
    EXPECT(tzfs_decode_inodes(2, keys, 16, values, lengths, COUNT, columns) == 0);
    seal(1, keys + 16, 16, 2, values + lengths[0], lengths[1]); /* of a version to come */
    EXPECT(tzfs_decode_inodes(1, keys, 16, values, lengths, COUNT, columns) == 1);
    EXPECT(tzfs_decode_inodes(1, NULL, 16, NULL, NULL, 0, NULL) == -1);
    free(values);
    const uint32_t tombstone = TZFS_ENVELOPE_BYTES, cut = FIXED - 1;
    uint8_t *value = filled(tombstone);
    seal(1, keys, 16, 0x81, value, tombstone);
    EXPECT(tzfs_decode_inodes(1, keys, 16, value, &tombstone, 1, columns) == 0);
    free(value);
    value = filled(cut);
    seal(1, keys, 16, 1, value, cut);
    EXPECT(tzfs_decode_inodes(1, keys, 16, value, &cut, 1, columns) == 0);
    free(value);
    free(columns);
    free(keys);
}

/* -- payload.c ------------------------------------------------------------------------------------------------------ */

static void page_checksums(void)
{
    uint8_t *first = copied("a"), sum[4];
    static const uint8_t of_a[4] = {0x1e, 0x96, 0x4e, 0x1f}; /* XXH3_64bits("a") is e6c632b61e964e1f */
    tzfs_page_sums(first, 1, sum);
    EXPECT(!memcmp(sum, of_a, 4));
    free(first);
    for (size_t i = 0; i < EDGES; i++) {
        const size_t length = edges[i], pages = (length + TZFS_PAGE_BYTES - 1) / TZFS_PAGE_BYTES;
        uint8_t *data = filled(length), *sums = block(4 * pages);
        tzfs_page_sums(data, length, sums);
        EXPECT(tzfs_pages_match(data, length, sums) == -1);
        for (size_t page = 0; page < pages; page++) {
            /* A page's sum does not depend on where it lies. */
            const size_t begin = page * TZFS_PAGE_BYTES;
            const size_t bytes = length - begin < TZFS_PAGE_BYTES ? length - begin : TZFS_PAGE_BYTES;
            uint8_t *alone = block(bytes);
            memcpy(alone, data + begin, bytes);
            EXPECT(tzfs_pages_match(alone, bytes, sums + 4 * page) == -1);
            alone[bytes - 1] ^= 1;
            EXPECT(tzfs_pages_match(alone, bytes, sums + 4 * page) == 0);
            free(alone);
            data[begin] ^= 0x80;
            EXPECT(tzfs_pages_match(data, length, sums) == (int64_t)page);
            data[begin] ^= 0x80;
        }
        free(sums);
        free(data);
    }
}

static void zeros(void)
{
    for (size_t i = 0; i < EDGES; i++) {
        uint8_t *data = calloc(edges[i] ? edges[i] : 1, 1);
        if (!data)
            abort();
        data = realloc(data, edges[i] ? edges[i] : 1);
        EXPECT(tzfs_is_zero(data, edges[i]));
        if (edges[i]) {
            const size_t places[3] = {0, edges[i] / 2, edges[i] - 1};
            for (size_t p = 0; p < 3; p++) {
                data[places[p]] = 1;
                EXPECT(!tzfs_is_zero(data, edges[i]));
                data[places[p]] = 0;
            }
        }
        free(data);
    }
    EXPECT(tzfs_is_zero(NULL, 0));
}

static void gathering(void)
{
    for (size_t i = 0; i < EDGES; i++) {
        const size_t length = edges[i];
        uint8_t *target = filled(length), *source = filled(length);
        tzfs_gather(target, length, NULL, NULL, NULL, 0);
        EXPECT(tzfs_is_zero(target, length));
        /* Thirds: the first and the last from pieces of their own, with nothing before, between or after. */
        const size_t third = length / 3;
        uint8_t *head = block(third), *tail = block(length - 2 * third);
        memcpy(head, source, third);
        memcpy(tail, source + 2 * third, length - 2 * third);
        const uint8_t *pieces[3] = {head, NULL, tail};
        const size_t offsets[3] = {0, third, 2 * third}, lengths[3] = {third, 0, length - 2 * third};
        tzfs_gather(target, length, pieces, offsets, lengths, 3);
        if (length) {
            EXPECT(!memcmp(target, source, third));
            EXPECT(tzfs_is_zero(target + third, third));
            EXPECT(!memcmp(target + 2 * third, source + 2 * third, length - 2 * third));
        }
        if (length > 2) { /* one byte in the middle */
            const uint8_t one = 0xee;
            const uint8_t *middle = &one;
            const size_t where = length / 2, bytes = 1;
            tzfs_gather(target, length, &middle, &where, &bytes, 1);
            EXPECT(tzfs_is_zero(target, where) && target[where] == 0xee);
            EXPECT(tzfs_is_zero(target + where + 1, length - where - 1));
        }
        free(tail);
        free(head);
        free(source);
        free(target);
    }
}

/* -- falloc.c ------------------------------------------------------------------------------------------------------- */

static void allocating(void)
{
    FILE *file = tmpfile();
    if (!file)
        abort();
    const int fd = fileno(file);
    uint8_t *data = filled(8192), *read_back = block(8192);
    struct stat stat;
    EXPECT(pwrite(fd, data, 8192, 0) == 8192);
    int answer = tzfs_fallocate_keep(fd, 8192, 65536);
    EXPECT(answer == 0 || answer == EOPNOTSUPP);
    EXPECT(!fstat(fd, &stat) && stat.st_size == 8192);
    answer = tzfs_fallocate_punch(fd, 0, 4096);
    EXPECT(answer == 0 || answer == EOPNOTSUPP);
    EXPECT(pread(fd, read_back, 8192, 0) == 8192);
    EXPECT(answer == EOPNOTSUPP || tzfs_is_zero(read_back, 4096));
    EXPECT(!memcmp(read_back + 4096, data + 4096, 4096));
    EXPECT(tzfs_fallocate_keep(-1, 0, 1) == EBADF);
    EXPECT(tzfs_fallocate_keep(fd, 0, 0) == EINVAL);
    free(read_back);
    free(data);
    fclose(file);
}

/* -- pump.c --------------------------------------------------------------------------------------------------------- */

static void pumping(void)
{
    int fuse[2], wake[2];
    char byte = 1;
    if (pipe(fuse) || pipe(wake))
        abort();
    struct tzfs_pump *pump = calloc(1, sizeof *pump);
    if (!pump)
        abort();
    pump->turn_max_ns = 1000000000;
    pump->turn_ns = tzfs_pump_now_ns();
    pump->deadline_ns = INT64_MAX;
    EXPECT(tzfs_pump_wait(pump, fuse[0], wake[0]) == TZFS_PUMP_IDLE && pump->idle == 1);
    pump->spin_ns = 1000;
    EXPECT(tzfs_pump_wait(pump, fuse[0], -1) == TZFS_PUMP_IDLE && pump->vain == 1 && pump->skip == 1);
    EXPECT(tzfs_pump_wait(pump, fuse[0], -1) == TZFS_PUMP_IDLE && pump->skip == 0);
    EXPECT(write(fuse[1], &byte, 1) == 1);
    EXPECT(tzfs_pump_wait(pump, fuse[0], wake[0]) == TZFS_PUMP_READY && pump->ready == 1 && !pump->failures);
    EXPECT(write(wake[1], &byte, 1) == 1);
    EXPECT(tzfs_pump_wait(pump, fuse[0], wake[0]) == TZFS_PUMP_WOKEN);
    EXPECT(tzfs_pump_wait(pump, fuse[0], wake[0]) == TZFS_PUMP_READY); /* not twice in a row */
    pump->turn_ns = tzfs_pump_now_ns() - pump->turn_max_ns;
    EXPECT(tzfs_pump_wait(pump, fuse[0], wake[0]) == TZFS_PUMP_TURN && pump->turns == 1);
    pump->turn_ns = tzfs_pump_now_ns();
    pump->deadline_ns = pump->turn_ns;
    EXPECT(tzfs_pump_wait(pump, fuse[0], wake[0]) == TZFS_PUMP_TURN);
    free(pump);
    for (int i = 0; i < 2; i++) {
        close(fuse[i]);
        close(wake[i]);
    }
    EXPECT(tzfs_pump_hands_over() == 0);
    EXPECT(tzfs_pump_guard("/nonexistent/library.so") == 1);
    EXPECT(tzfs_pump_unguard() == 1);
    EXPECT(tzfs_pump_received() == 0 && tzfs_pump_withdrawn() == 0);
}

int main(int count, char **arguments)
{
    (void)arguments;
    if (count > 1) { /* any argument: one byte too far, which the sanitizer must notice */
        uint8_t *short_by_one = filled(16);
        return tzfs_fnv1a64(short_by_one, 17, TZFS_FNV_OFFSET) == 0;
    }
    fnv();
    record_sums();
    verifying();
    decoding();
    page_checksums();
    zeros();
    gathering();
    allocating();
    compressing();
    pumping();
    answering_requests();
    if (!failures)
        puts("ok");
    return failures != 0;
}
