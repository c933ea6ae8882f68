/* fallocate(2), which Python only has in the form that makes a file longer.
 *
 * tzfs_fallocate_keep allocates the blocks of a range and leaves the file's size alone; tzfs_fallocate_punch gives them
 * back.  Both return 0 or an errno, EOPNOTSUPP where the filesystem cannot, and try again when a signal interrupts. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "falloc.h"

#include <errno.h>
#include <fcntl.h>

static int allocate(int fd, int mode, int64_t offset, int64_t nbytes)
{
    int failed;

    do
        failed = fallocate(fd, mode, (off_t)offset, (off_t)nbytes);
    while (failed && errno == EINTR);
    return failed ? errno : 0;
}

int tzfs_fallocate_keep(int fd, int64_t offset, int64_t nbytes)
{
    return allocate(fd, FALLOC_FL_KEEP_SIZE, offset, nbytes);
}

int tzfs_fallocate_punch(int fd, int64_t offset, int64_t nbytes)
{
    return allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, nbytes);
}
