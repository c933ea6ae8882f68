/* Compression of payload: LZ4 blocks and zstd frames, with the sum that is kept of them.
 *
 * Nothing here trusts what it is given to read: sizes are the caller's, and no buffer is made by what the bytes claim. */
#ifndef TZFS_CODEC_H
#define TZFS_CODEC_H

#include <stddef.h>
#include <stdint.h>

#define TZFS_CODEC_LZ4 1
#define TZFS_CODEC_ZSTD 2

/* What zstd needs to compress, kept from call to call by one thread at a time; NULL without memory. */
void *tzfs_compressor_make(void);
void tzfs_compressor_free(void *compressor);

/* The length of `data` compressed into `target`, and into `sums` the low 32 bits of the XXH3 of that, big-endian; 0 if
 * it would take more than `room` bytes, or if nothing is to be tried (codec 0, room 0), and into `sums` those of the
 * pages of `data` (payload.h).  `level` is zstd's; `compressor` may be NULL for LZ4.
 *
 * LZ4, and zstd up to level 3, go the faster through data the longer they find nothing.  The levels above do not, so
 * level 1 tries before them: what it does not make smaller is left. */
size_t tzfs_encode(void *compressor, int codec, int level, const uint8_t *data, size_t length, uint8_t *target,
                   size_t room, uint8_t *sums);

/* 0 if `stored`, whose sum is `sum`, decompresses to exactly `length` bytes, which are then in `target`; 1 if its sum
 * is another, 2 if it is not such data, 3 if the codec is unknown.  Without `sum` (NULL) none is compared. */
int tzfs_decompress(int codec, const uint8_t *stored, size_t stored_length, const uint8_t *sum, uint8_t *target,
                    size_t length);

#endif
