/* Space of a file ahead of its end and holes within it; see tzfs/store/space.py. */
#ifndef TZFS_FALLOC_H
#define TZFS_FALLOC_H

#include <stdint.h>

int tzfs_fallocate_keep(int fd, int64_t offset, int64_t nbytes);
int tzfs_fallocate_punch(int fd, int64_t offset, int64_t nbytes);

#endif
