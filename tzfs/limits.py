"""Every bound of tzfs, with the arithmetic behind it.  At each there is an error that says so, and a test."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# -- names and attributes: the kernel's own limits, so that nothing a Linux program may do is refused here ---------

NAME_BYTES_MAX: Final = 255  # NAME_MAX; a dirent key is 8 + 255 + 1 + 8 = 272 bytes, LMDB allows 511
PATH_BYTES_MAX: Final = 4095  # PATH_MAX less its NUL
SYMLINK_TARGET_BYTES_MAX: Final = 4095  # likewise
SYMLINKS_FOLLOWED_MAX: Final = 40  # MAXSYMLINKS of the kernel, for paths resolved by the Python API
XATTR_NAME_BYTES_MAX: Final = 255  # XATTR_NAME_MAX
XATTR_VALUE_BYTES_MAX: Final = 64 * KIB  # XATTR_SIZE_MAX
XATTR_LIST_BYTES_MAX: Final = 64 * KIB  # XATTR_LIST_MAX
LINKS_MAX: Final = 65_000  # ext4's; a link count takes 4 bytes at rest
INO_BITS: Final = 40  # pyfuse3's st_ino is the node id and must also say which snapshot view it belongs to
INO_MAX: Final = (1 << INO_BITS) - 1
FILE_BYTES_MAX: Final = (1 << 63) - 1 - 4096  # loff_t, less a page, as for ext4 and xfs

# -- payload ---------------------------------------------------------------------------------------------------------

PAGE_BYTES: Final = 4096  # the unit of extents and of payload checksums
INLINE_BYTES_MAX: Final = 4000  # with 5 bytes of envelope below 4,080, the largest value in one LMDB page
CHUNK_SHIFT_DEFAULT: Final = 17  # 128 KiB: one FUSE read or write
CHUNK_SHIFT_MIN: Final = 12
CHUNK_SHIFT_MAX: Final = 20  # 256 page sums of 4 bytes, about 1 KiB of chunk record
SLICES_MAX: Final = 16  # (38 + 4 * 2) * 16 + 4 * 256 sums < 2 KiB: a chunk record never leaves its page
SEGMENT_BYTES_MAX: Final = 1 * GIB  # blocks are numbered in 32 bits; 1 GiB keeps a copy or a compaction short
EXTENT_BYTES_MAX: Final = 1 * MIB  # one chunk of the largest size

# -- transactions ----------------------------------------------------------------------------------------------------

TXG_INTERVAL_S_DEFAULT: Final = 1.0  # what a crash may cost at most, unless fsynced
DIRTY_BYTES_MAX_DEFAULT: Final = 64 * MIB  # written payload waiting in memory; 60 ms of a 1 GiB/s disk
ABSORB_ROWS: Final = 3000  # changed in memory, to become rows of the transaction; 2 us each: the loop stops for 6 ms
DIRTY_ROWS_MAX: Final = 9000  # waiting for a commit, which writes up to a page for each: the loop stops for 10 ms
FLUSH_AHEAD_BYTES: Final = 16 * MIB  # dirty payload that is written in a thread without waiting for a commit: 16 ms
FLUSH_REMAINDER_BYTES_MAX: Final = 256 * KIB  # small enough to be written and synced without yielding: 1 ms
REDO_PAYLOAD_BYTES_MAX: Final = 64 * KIB  # payload that an fsync puts into the redo log; more goes to its extents
REDO_OPERATIONS_MAX: Final = 500  # that an fsync puts there, 1 us each; more are worth a commit of the tables
META_RESERVE_BYTES: Final = 48 * MIB  # the largest txg: 4/3 * DIRTY_ROWS_MAX rows, each on a page of its own
META_RESERVE_LEAST_BYTES: Final = 8 * MIB  # where that is not there: what a group of few rows can need by far
FULL_DIRTY_ROWS_MAX: Final = 32  # on a full disk: a few removals; their pages fit into the 64 that stay reserved
RECLAIM_AT_ONCE_CHUNKS: Final = 64  # removed within the operation; more become a background reclaim
RECLAIM_BATCH_CHUNKS: Final = 128  # four rows each, 60 us: it stops the mount for 8 ms, in which a ping waits
STAGING_BATCH_KEYS: Final = 128  # staged or withdrawn at once: rows as many, and as long, as a batch of reclaim
TOMBSTONE_BATCH: Final = 500  # rows of `change` looked at in one step, a seek or two each: 2 ms
DESTROY_BATCH_ROWS: Final = 64  # of what a destroyed snapshot saw; 15 us each: it stops the mount for 1 ms
CACHED_INODES_MAX: Final = 65_536  # about 600 bytes each: 40 MB of the 150 MiB a daemon may use
DECODED_BYTES_MAX: Final = 4 * MIB  # decompressed and kept: 32 chunks of the usual size
CACHED_CHUNKS_MAX: Final = 16_384  # about 700 bytes each

# -- snapshots and names of filesystems --------------------------------------------------------------------------------

FILESYSTEM_NAME_BYTES_MAX: Final = 255
SNAPSHOT_NAME_BYTES_MAX: Final = 255
LOG_ENTRIES_DEFAULT: Final = 4096  # 200 bytes each: 1 MiB of tables; an agent's day of commands
FLATTEN_BATCH_KEYS: Final = 128  # copied at once: rows as many, and as long, as a batch of reclaim
FLATTEN_BATCH_BYTES: Final = 2 << 20  # of payload at most: two chunks of the greatest size, read and written again
CLONE_DEPTH_MAX: Final = 8  # a look-up may cost one seek a level
ROLLBACK_GAP: Final = 1 << 32
MAP_BYTES: Final = 1 << 38  # of address space, never resized: a process has 2^47 bytes, so it may open 500 of them

# -- control ---------------------------------------------------------------------------------------------------------

RPC_MESSAGE_BYTES_MAX: Final = 1 * MIB
RPC_CLIENTS_MAX: Final = 64
SNAPSHOT_VIEWS_MAX: Final = 1 << 22  # views numbered within one mount; 62 - INO_BITS bits of the node id
