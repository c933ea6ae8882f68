/* A shared object that receives requests as pyfuse3 does, from a libfuse that is one function: for driver_answers.c. */
#include <errno.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

struct fuse_buf { /* libfuse's, up to 3.16 */
    size_t size;
    int flags;
    void *mem;
    int fd;
    off_t pos;
};

int fuse_version(void);
int fuse_session_receive_buf(void *session, void *buffer);
int receive(void *session, void *buffer);

int fuse_version(void)
{
    return 314;
}

/* `session` is the descriptor. */
__attribute__((noinline)) int fuse_session_receive_buf(void *session, void *buffer)
{
    struct fuse_buf *b = buffer;
    if (!b->mem && !(b->mem = malloc((1 << 20) + 4096)))
        return -ENOMEM;
    const ssize_t got = read(*(int *)session, b->mem, (1 << 20) + 4096);
    if (got < 0)
        return -errno;
    b->size = (size_t)got;
    return (int)got;
}

int receive(void *session, void *buffer)
{
    return fuse_session_receive_buf(session, buffer);
}
