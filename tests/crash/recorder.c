/* Records what a process does to the files below one folder, in the order in which it is done.
 *
 * Loaded with LD_PRELOAD.  RECORD_ROOT is the folder, RECORD_LOG the file that is appended to, RECORD_MARKS a file whose
 * writes are marks in the log.  Each record is written after the call has succeeded, under the lock that the call was
 * made under: the log is one possible order of the calls, and of calls that overlapped the one that took place.
 *
 *     record = kind u8, flags u8, length of path u16, length of other path u16, offset u64, size u64, path, other path,
 *              and of a write (and a mark) `size` bytes of data; integers as the machine has them
 *
 * What bypasses the C library is not seen; the test that replays everything and compares the folders would notice.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, SYNC, TRUNCATE, PUNCH, CREATE, UNLINK, RENAME, MKDIR, RMDIR, MARK, LINK, ALLOCATE, EXCHANGE };
enum { DURABLE = 1 };

#define PATH 4096
#define REAL(result, name, ...) static result (*real_##name)(__VA_ARGS__)

REAL(int, openat, int, const char *, int, ...);
REAL(ssize_t, write, int, const void *, size_t);
REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
REAL(ssize_t, writev, int, const struct iovec *, int);
REAL(ssize_t, pwritev, int, const struct iovec *, int, off_t);
REAL(ssize_t, pwritev2, int, const struct iovec *, int, off_t, int);
REAL(int, fsync, int);
REAL(int, fdatasync, int);
REAL(int, ftruncate, int, off_t);
REAL(int, truncate, const char *, off_t);
REAL(int, fallocate, int, int, off_t, off_t);
REAL(int, unlinkat, int, const char *, int);
REAL(int, renameat2, int, const char *, int, const char *, unsigned int);
REAL(int, mkdirat, int, const char *, mode_t);
REAL(int, linkat, int, const char *, int, const char *, int);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH], marks[PATH];
static size_t root_length;
static int log_fd = -1;

static void broken(const char *what) {
    dprintf(2, "recorder: %s: %s\n", what, strerror(errno));
    abort();
}

#define FIND(name)                                                                                                     \
    do {                                                                                                               \
        *(void **)&real_##name = dlsym(RTLD_NEXT, #name);                                                              \
        if (real_##name == NULL)                                                                                       \
            broken(#name);                                                                                             \
    } while (0)

__attribute__((constructor)) static void begin(void) {
    FIND(openat);
    FIND(write);
    FIND(pwrite);
    FIND(writev);
    FIND(pwritev);
    FIND(pwritev2);
    FIND(fsync);
    FIND(fdatasync);
    FIND(ftruncate);
    FIND(truncate);
    FIND(fallocate);
    FIND(unlinkat);
    FIND(renameat2);
    FIND(mkdirat);
    FIND(linkat);
    const char *where = getenv("RECORD_ROOT"), *log = getenv("RECORD_LOG"), *mark = getenv("RECORD_MARKS");
    if (where == NULL || log == NULL || mark == NULL)
        return;
    snprintf(root, sizeof root, "%s/", where);
    snprintf(marks, sizeof marks, "%s", mark);
    root_length = strlen(root);
    log_fd = real_openat(AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        broken(log);
}

/* The path below the root, or NULL for what is not recorded. */
static const char *below(const char *path) {
    if (log_fd < 0 || strncmp(path, root, root_length - 1) != 0)
        return NULL;
    if (path[root_length - 1] == '\0')
        return "";
    return path[root_length - 1] == '/' ? path + root_length : NULL;
}

static const char *path_of(int fd, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, buffer, PATH - 1);
    if (length < 0)
        return "";
    buffer[length] = '\0';
    return buffer;
}

static const char *path_at(int directory, const char *path, char *buffer) {
    if (path[0] == '/')
        return path;
    char from[PATH];
    const char *base = directory == AT_FDCWD ? getcwd(from, sizeof from) : path_of(directory, from);
    if (snprintf(buffer, PATH, "%s/%s", base == NULL ? "" : base, path) >= PATH)
        buffer[0] = '\0';
    return buffer;
}

static void put(const void *data, size_t length) {
    const char *at = data;
    while (length > 0) {
        ssize_t done = real_write(log_fd, at, length);
        if (done < 0)
            broken("log");
        at += done;
        length -= (size_t)done;
    }
}

static void record(int kind, int flags, const char *path, const char *other, uint64_t offset, uint64_t size) {
    struct __attribute__((packed)) {
        uint8_t kind, flags;
        uint16_t path, other;
        uint64_t offset, size;
    } head = {(uint8_t)kind, (uint8_t)flags, (uint16_t)strlen(path), (uint16_t)strlen(other), offset, size};
    put(&head, sizeof head);
    put(path, strlen(path));
    put(other, strlen(other));
}

/* After `done` bytes of some buffers have been written to `fd` at `offset`. */
static void wrote(int fd, const struct iovec *parts, int count, ssize_t done, off_t offset) {
    char buffer[PATH];
    int saved = errno;
    if (log_fd < 0 || done <= 0)
        return;
    const char *whole = path_of(fd, buffer), *path = below(whole);
    int mark = strcmp(whole, marks) == 0;
    if (path != NULL || mark) {
        int flags = fcntl(fd, F_GETFL) & O_DSYNC ? DURABLE : 0;
        record(mark ? MARK : WRITE, flags, mark ? "" : path, "", (uint64_t)offset, (uint64_t)done);
        size_t left = (size_t)done;
        for (int i = 0; i < count && left > 0; i++) {
            size_t length = parts[i].iov_len < left ? parts[i].iov_len : left;
            put(parts[i].iov_base, length);
            left -= length;
        }
    }
    errno = saved;
}

static off_t before(int fd, ssize_t done) { return done > 0 ? lseek(fd, 0, SEEK_CUR) - done : 0; }

static void changed(int fd, int kind, uint64_t offset, uint64_t size) {
    char buffer[PATH];
    int saved = errno;
    const char *path = log_fd < 0 ? NULL : below(path_of(fd, buffer));
    if (path != NULL)
        record(kind, 0, path, "", offset, size);
    errno = saved;
}

static void renamed(int kind, const char *path, const char *other) {
    const char *from = below(path), *to = other[0] == '\0' ? "" : below(other);
    if (from != NULL || (to != NULL && to[0] != '\0'))
        record(kind, 0, from == NULL ? "?" : from, to == NULL ? "?" : to, 0, 0);
}

#define LOCKED(result_type, call, after)                                                                               \
    do {                                                                                                               \
        pthread_mutex_lock(&lock);                                                                                     \
        result_type result = call;                                                                                     \
        int saved = errno;                                                                                             \
        if (result >= 0) {                                                                                             \
            after;                                                                                                     \
        }                                                                                                              \
        errno = saved;                                                                                                 \
        pthread_mutex_unlock(&lock);                                                                                   \
        return result;                                                                                                 \
    } while (0)

/* -- opening ------------------------------------------------------------------------------------------------------- */

static int opened(int directory, const char *path, int flags, mode_t mode) {
    char buffer[PATH];
    struct stat found;
    if (log_fd < 0 || (flags & (O_CREAT | O_TRUNC)) == 0)
        return real_openat(directory, path, flags, mode);
    pthread_mutex_lock(&lock);
    int there = fstatat(directory, path, &found, 0) == 0;
    int fd = real_openat(directory, path, flags, mode);
    int saved = errno;
    const char *name = fd < 0 ? NULL : below(path_of(fd, buffer));
    if (name != NULL) {
        if (!there)
            record(CREATE, 0, name, "", 0, 0);
        else if (flags & O_TRUNC)
            record(TRUNCATE, 0, name, "", 0, 0);
    }
    errno = saved;
    pthread_mutex_unlock(&lock);
    return fd;
}

static mode_t mode_of(int flags, va_list rest) {
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = mode_of(flags, rest);                                                                            \
        va_end(rest);                                                                                                  \
        return opened(AT_FDCWD, path, flags, mode);                                                                    \
    }
#define OPENAT(name)                                                                                                   \
    int name(int directory, const char *path, int flags, ...) {                                                        \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = mode_of(flags, rest);                                                                            \
        va_end(rest);                                                                                                  \
        return opened(directory, path, flags, mode);                                                                   \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

/* -- writing ------------------------------------------------------------------------------------------------------- */

ssize_t write(int fd, const void *data, size_t length) {
    struct iovec part = {(void *)(uintptr_t)data, length};
    if (log_fd < 0)
        return real_write(fd, data, length);
    LOCKED(ssize_t, real_write(fd, data, length), wrote(fd, &part, 1, result, before(fd, result)));
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    LOCKED(ssize_t, real_writev(fd, parts, count), wrote(fd, parts, count, result, before(fd, result)));
}

#define PWRITE(name)                                                                                                   \
    ssize_t name(int fd, const void *data, size_t length, off_t offset) {                                              \
        struct iovec part = {(void *)(uintptr_t)data, length};                                                         \
        LOCKED(ssize_t, real_pwrite(fd, data, length, offset), wrote(fd, &part, 1, result, offset));                   \
    }
#define PWRITEV(name)                                                                                                  \
    ssize_t name(int fd, const struct iovec *parts, int count, off_t offset) {                                         \
        LOCKED(ssize_t, real_pwritev(fd, parts, count, offset), wrote(fd, parts, count, result, offset));              \
    }
#define PWRITEV2(name)                                                                                                 \
    ssize_t name(int fd, const struct iovec *parts, int count, off_t offset, int flags) {                              \
        LOCKED(ssize_t, real_pwritev2(fd, parts, count, offset, flags), wrote(fd, parts, count, result, offset));      \
    }
PWRITE(pwrite)
PWRITE(pwrite64)
PWRITEV(pwritev)
PWRITEV(pwritev64)
PWRITEV2(pwritev2)
PWRITEV2(pwritev64v2)

/* -- syncing, lengths ---------------------------------------------------------------------------------------------- */

int fsync(int fd) { LOCKED(int, real_fsync(fd), changed(fd, SYNC, 0, 0)); }
int fdatasync(int fd) { LOCKED(int, real_fdatasync(fd), changed(fd, SYNC, 0, 0)); }

#define FTRUNCATE(name)                                                                                                \
    int name(int fd, off_t length) {                                                                                   \
        LOCKED(int, real_ftruncate(fd, length), changed(fd, TRUNCATE, 0, (uint64_t)length));                           \
    }
#define TRUNCATE_PATH(name)                                                                                            \
    int name(const char *path, off_t length) {                                                                         \
        char buffer[PATH];                                                                                             \
        const char *whole = path_at(AT_FDCWD, path, buffer);                                                           \
        LOCKED(int, real_truncate(path, length),                                                                       \
               if (below(whole) != NULL) record(TRUNCATE, 0, below(whole), "", 0, (uint64_t)length));                  \
    }
#define FALLOCATE(name)                                                                                                \
    int name(int fd, int mode, off_t offset, off_t length) {                                                           \
        LOCKED(int, real_fallocate(fd, mode, offset, length),                                                          \
               if (mode & FALLOC_FL_PUNCH_HOLE) changed(fd, PUNCH, (uint64_t)offset, (uint64_t)length);                \
               else if (!(mode & FALLOC_FL_KEEP_SIZE)) changed(fd, ALLOCATE, (uint64_t)offset, (uint64_t)length));     \
    }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)
TRUNCATE_PATH(truncate)
TRUNCATE_PATH(truncate64)
FALLOCATE(fallocate)
FALLOCATE(fallocate64)

/* -- names --------------------------------------------------------------------------------------------------------- */

int unlinkat(int directory, const char *path, int flags) {
    char buffer[PATH];
    const char *whole = path_at(directory, path, buffer);
    LOCKED(int, real_unlinkat(directory, path, flags), renamed(flags & AT_REMOVEDIR ? RMDIR : UNLINK, whole, ""));
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int renameat2(int from, const char *path, int to, const char *other, unsigned int flags) {
    char one[PATH], two[PATH];
    const char *whole = path_at(from, path, one), *target = path_at(to, other, two);
    LOCKED(int, real_renameat2(from, path, to, other, flags),
           renamed(flags & RENAME_EXCHANGE ? EXCHANGE : RENAME, whole, target));
}
int renameat(int from, const char *path, int to, const char *other) { return renameat2(from, path, to, other, 0); }
int rename(const char *path, const char *other) { return renameat2(AT_FDCWD, path, AT_FDCWD, other, 0); }

int mkdirat(int directory, const char *path, mode_t mode) {
    char buffer[PATH];
    const char *whole = path_at(directory, path, buffer);
    LOCKED(int, real_mkdirat(directory, path, mode), renamed(MKDIR, whole, ""));
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int linkat(int from, const char *path, int to, const char *other, int flags) {
    char one[PATH], two[PATH];
    const char *whole = path_at(from, path, one), *target = path_at(to, other, two);
    LOCKED(int, real_linkat(from, path, to, other, flags), renamed(LINK, whole, target));
}
int link(const char *path, const char *other) { return linkat(AT_FDCWD, path, AT_FDCWD, other, 0); }
