/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System-call wrappers that handle EINTR and short transfers once, here.
 * All return 0 or a count on success and a negative errno on failure.
 * Any thread. fork: no state.
 */
#pragma once

#include "lib/cleanup.h"

#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

/* read/write/pread until len bytes are through. A short file is -ENODATA. */
__must_check int io_read_full(int fd, void *buf, size_t len);
__must_check int io_write_full(int fd, const void *buf, size_t len);
__must_check int io_pread_full(int fd, void *buf, size_t len, off_t off);
__must_check int io_pwrite_full(int fd, const void *buf, size_t len, off_t off);

/* One read/write on a non-blocking descriptor: count, 0 at EOF (read), -EAGAIN, or -errno. */
ssize_t io_read_some(int fd, void *buf, size_t len);
ssize_t io_write_some(int fd, const void *buf, size_t len);
/* The same of a socket, blocking or not: send(MSG_NOSIGNAL | MSG_DONTWAIT), recv(MSG_DONTWAIT). */
ssize_t io_send_some(int fd, const void *buf, size_t len);
ssize_t io_recv_some(int fd, void *buf, size_t len);
/* As io_recv_some(), but what comes stays in the socket as well. */
ssize_t io_peek_some(int fd, void *buf, size_t len);

/*
 * 0 or -errno. fstat(2) itself: glibc's function makes newfstatat(2), which can look up paths, and
 * VMMs may not make it.
 */
__must_check int io_fstat(int fd, struct stat *st);

/* Size in bytes of a regular file or block device, or -errno. */
int64_t io_size(int fd);

/*
 * Opens a regular file or block device for reading: descriptor or -errno; -EINVAL: it is something
 * else. It does not wait for anybody, as the open() of a FIFO does for its other end.
 */
__must_check int io_open_data(const char *path);

__must_check int io_set_nonblock(int fd, int on);

/*
 * Reads a whole small file into a new NUL-terminated buffer (caller frees).
 * Fails with -EFBIG when it is longer than max. *len may be NULL.
 */
__must_check int io_read_file(const char *path, size_t max, char **out, size_t *len);
/* The same of what is left of an open one. */
__must_check int io_read_rest(int fd, size_t max, char **out, size_t *len);

/* CLOCK_MONOTONIC and CLOCK_REALTIME in nanoseconds. */
uint64_t io_now_ns(void);
uint64_t io_realtime_ns(void);
/* "2026-01-31T23:59:59.123Z" of milliseconds since 1970. */
#define IO_TIME_TEXT 32
void io_time_text(int64_t ms, char out[IO_TIME_TEXT]);
/*
 * CLOCK_REALTIME less CLOCK_MONOTONIC_RAW. It changes when the time of day is set or slewed, and by
 * as long as the host slept: so much a guest's clock, which runs by the processor's counter, is off
 * since.
 */
int64_t io_clock_offset_ns(void);
