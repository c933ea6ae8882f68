/* Compression under the sanitizers: there and back at every length around which something turns, with too little room,
 * and whatever a decompressor may be given to read: cut short, with bytes changed, and plain noise. */
#include "driver.h"

#include "codec.h"
#include "payload.h"

#include <string.h>

enum { PIECE = 20000, NOISE = 4000, GUARD = 64 };

static uint64_t state = 0x2545f4914f6cdd1du;

static uint32_t draw(uint32_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

/* A text of few words, so that it compresses. */
static uint8_t *text(size_t length)
{
    static const char words[] = "the chunk lies where its extent is, and the extent where the segment was begun. ";
    uint8_t *made = block(length);
    for (size_t i = 0; i < length; i++)
        made[i] = draw(23) ? (uint8_t)words[i % (sizeof words - 1)] : (uint8_t)draw(256);
    return made;
}

/* Decompresses into `length` bytes with guards around them: the libraries are not built with the sanitizer, which sees
 * only what they have others do for them. */
static int read_back(int codec, const uint8_t *stored, size_t stored_length, const uint8_t *sum, size_t length)
{
    uint8_t *exact = block(stored_length), *guarded = block(length + 2 * GUARD);
    memset(guarded, 0xa5, length + 2 * GUARD);
    if (stored_length)
        memcpy(exact, stored, stored_length);
    int answer = tzfs_decompress(codec, exact, stored_length, sum, guarded + GUARD, length);
    for (size_t i = 0; i < GUARD; i++)
        EXPECT(guarded[i] == 0xa5 && guarded[GUARD + length + i] == 0xa5);
    free(exact);
    free(guarded);
    return answer;
}

static void there_and_back(void *compressor, int codec, int level, size_t length)
{
    size_t pages = (length + TZFS_PAGE_BYTES - 1) / TZFS_PAGE_BYTES;
    uint8_t *data = text(length), *sum = block(4 * pages), *sums = block(4 * pages);
    tzfs_page_sums(data, length, sums);
    for (size_t room = length; room > 0; room = room > 9 ? room / 3 : room - 1) {
        uint8_t *target = block(room), *again = block(length);
        size_t made = tzfs_encode(compressor, codec, level, data, length, target, room, sum);
        EXPECT(made <= room);
        if (made == 0)
            EXPECT(memcmp(sum, sums, 4 * pages) == 0);
        if (made > 0) {
            EXPECT(tzfs_decompress(codec, target, made, sum, again, length) == 0);
            EXPECT(memcmp(data, again, length) == 0);
            EXPECT(tzfs_decompress(codec, target, made, NULL, again, length) == 0);
            EXPECT(read_back(codec, target, made, NULL, length - 1) == 2);
            EXPECT(read_back(codec, target, made, NULL, length + 1) == 2);
            EXPECT(read_back(codec, target, made - 1, NULL, length) == 2);
            sum[draw(4)] ^= 1;
            EXPECT(read_back(codec, target, made, sum, length) == 1);
        }
        free(target);
        free(again);
    }
    free(data);
    free(sum);
    free(sums);
}

static void changed(void *compressor, int codec, int level)
{
    uint8_t *data = text(PIECE), *stored = block(PIECE), sum[4 * (PIECE / TZFS_PAGE_BYTES + 1)];
    size_t made = tzfs_encode(compressor, codec, level, data, PIECE, stored, PIECE, sum);
    EXPECT(made > 0);
    for (int i = 0; i < NOISE; i++) {
        uint8_t *bad = block(made);
        memcpy(bad, stored, made);
        for (uint32_t flips = 1 + draw(8); flips > 0; flips--)
            bad[draw(i % 2 ? 64 : (uint32_t)made)] = (uint8_t)draw(256);
        read_back(codec, bad, made - draw(i % 3 ? 1 : (uint32_t)made), NULL, PIECE);
        free(bad);
    }
    free(data);
    free(stored);
}

static void noise(int codec)
{
    for (int i = 0; i < NOISE; i++) {
        size_t length = draw(300);
        uint8_t *data = block(length);
        for (size_t at = 0; at < length; at++)
            data[at] = (uint8_t)draw(256);
        if (codec == TZFS_CODEC_ZSTD && length > 4) { /* the frame's magic, or it looks no further */
            static const uint8_t magic[] = {0x28, 0xb5, 0x2f, 0xfd};
            memcpy(data, magic, sizeof magic);
        }
        read_back(codec, data, length, NULL, draw(2) ? draw(5000) : 0);
        free(data);
    }
}

void compressing(void)
{
    static const size_t lengths[] = {1, 2, 12, 13, 17, 4095, 4096, 4097, 65536, 65547, 131072, 131073};
    static const struct {
        int codec, level;
    } kinds[] = {{TZFS_CODEC_LZ4, 0}, {TZFS_CODEC_ZSTD, 1}, {TZFS_CODEC_ZSTD, 3}, {TZFS_CODEC_ZSTD, 9}};
    uint8_t byte[] = {'a'}, sum[4], target[8];
    void *compressor = tzfs_compressor_make();
    EXPECT(compressor != NULL);
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++)
            there_and_back(compressor, kinds[k].codec, kinds[k].level, lengths[i]);
        changed(compressor, kinds[k].codec, kinds[k].level);
    }
    noise(TZFS_CODEC_LZ4);
    noise(TZFS_CODEC_ZSTD);
    EXPECT(tzfs_encode(compressor, 0, 0, byte, 1, target, sizeof target, sum) == 0);
    EXPECT(tzfs_encode(NULL, TZFS_CODEC_ZSTD, 1, byte, 1, target, sizeof target, sum) == 0);
    EXPECT(tzfs_encode(compressor, TZFS_CODEC_LZ4, 0, byte, 0, target, sizeof target, sum) == 0);
    EXPECT(tzfs_decompress(7, byte, 1, NULL, target, 1) == 3);
    tzfs_compressor_free(compressor);
}
