/* Preloaded into a child: records what it writes to files below RECORD_DIR, and what it syncs, to the file RECORD_LOG.
 *
 * A record is: kind (1 byte), length of the path (u32), path, offset (u64), length (u64), data.
 * Kinds: w write, t truncate to offset, s sync of a file or folder, r rename (the data are the new path), u unlink.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int log_fd = -1;
static ssize_t (*real_write)(int, const void *, size_t);

static void put(const void *data, size_t size) {
    if (real_write(log_fd, data, size) != (ssize_t)size) abort();
}

static void record(char kind, const char *path, uint64_t offset, const void *data, uint64_t size) {
    const char *folder = getenv("RECORD_DIR");
    if (!folder || strncmp(path, folder, strlen(folder)) != 0) return;
    if (!real_write) real_write = dlsym(RTLD_NEXT, "write");
    if (log_fd < 0) log_fd = open(getenv("RECORD_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0) abort();
    uint32_t length = strlen(path);
    put(&kind, 1), put(&length, 4), put(path, length), put(&offset, 8), put(&size, 8);
    if (size) put(data, size);
}

static void record_fd(char kind, int fd, uint64_t offset, const void *data, uint64_t size) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return;
    path[length] = 0;
    record(kind, path, offset, data, size);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = dlsym(RTLD_NEXT, #name)

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    REAL(pwrite64);
    ssize_t done = real(fd, data, size, offset);
    if (done > 0) record_fd('w', fd, offset, data, done);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    REAL(pwrite);
    ssize_t done = real(fd, data, size, offset);
    if (done > 0) record_fd('w', fd, offset, data, done);
    return done;
}

ssize_t write(int fd, const void *data, size_t size) {
    if (!real_write) real_write = dlsym(RTLD_NEXT, "write");
    off_t offset = fd > 2 ? lseek(fd, 0, SEEK_CUR) : -1;
    ssize_t done = real_write(fd, data, size);
    if (done > 0 && offset >= 0 && fd != log_fd) record_fd('w', fd, offset, data, done);
    return done;
}

int fsync(int fd) {
    REAL(fsync);
    record_fd('s', fd, 0, NULL, 0);
    return real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    record_fd('s', fd, 0, NULL, 0);
    return real(fd);
}

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    record_fd('t', fd, size, NULL, 0);
    return real(fd, size);
}

int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    record_fd('t', fd, size, NULL, 0);
    return real(fd, size);
}

int unlink(const char *path) {
    REAL(unlink);
    record('u', path, 0, NULL, 0);
    return real(path);
}

static void absolute(int folder, const char *name, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, path, size - 1);
    if (length < 0 || name[0] == '/') length = 0;
    snprintf(path + length, size - length, length ? "/%s" : "%s", name);
}

int unlinkat(int folder, const char *name, int flags) {
    REAL(unlinkat);
    char path[4096];
    absolute(folder, name, path, sizeof path);
    record('u', path, 0, NULL, 0);
    return real(folder, name, flags);
}

int renameat(int old_folder, const char *old, int new_folder, const char *name) {
    REAL(renameat);
    char from[4096], to[4096];
    absolute(old_folder, old, from, sizeof from);
    absolute(new_folder, name, to, sizeof to);
    record('r', from, 0, to, strlen(to));
    return real(old_folder, old, new_folder, name);
}
