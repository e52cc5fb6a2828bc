/* SPDX-License-Identifier: Apache-2.0 */
/*
 * EINTR and short transfers, in one place. Stateless; any thread.
 */
#define _GNU_SOURCE
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#define RETRY(expr)                                      \
	({                                               \
		ssize_t retry_r;                         \
		do                                       \
			retry_r = (expr);                \
		while (retry_r < 0 && errno == EINTR);   \
		retry_r < 0 ? (ssize_t)-errno : retry_r; \
	})

ssize_t io_read_some(int fd, void *buf, size_t len)
{
	return RETRY(read(fd, buf, len));
}

ssize_t io_write_some(int fd, const void *buf, size_t len)
{
	return RETRY(write(fd, buf, len));
}

ssize_t io_send_some(int fd, const void *buf, size_t len)
{
	return RETRY(send(fd, buf, len, MSG_NOSIGNAL | MSG_DONTWAIT));
}

ssize_t io_recv_some(int fd, void *buf, size_t len)
{
	return RETRY(recv(fd, buf, len, MSG_DONTWAIT));
}

ssize_t io_peek_some(int fd, void *buf, size_t len)
{
	return RETRY(recv(fd, buf, len, MSG_PEEK | MSG_DONTWAIT));
}

int io_read_full(int fd, void *buf, size_t len)
{
	char *p = buf;

	while (len) {
		ssize_t n = io_read_some(fd, p, len);

		if (n < 0)
			return (int)n;
		if (n == 0)
			return -ENODATA;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int io_write_full(int fd, const void *buf, size_t len)
{
	const char *p = buf;

	while (len) {
		ssize_t n = io_write_some(fd, p, len);

		if (n < 0)
			return (int)n;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int io_pread_full(int fd, void *buf, size_t len, off_t off)
{
	char *p = buf;

	while (len) {
		ssize_t n = RETRY(pread(fd, p, len, off));

		if (n < 0)
			return (int)n;
		if (n == 0)
			return -ENODATA;
		p += n;
		off += n;
		len -= (size_t)n;
	}
	return 0;
}

int io_pwrite_full(int fd, const void *buf, size_t len, off_t off)
{
	const char *p = buf;

	while (len) {
		ssize_t n = RETRY(pwrite(fd, p, len, off));

		if (n < 0)
			return (int)n;
		p += n;
		off += n;
		len -= (size_t)n;
	}
	return 0;
}

int io_fstat(int fd, struct stat *st)
{
	return syscall(SYS_fstat, fd, st) < 0 ? -errno : 0;
}

int64_t io_size(int fd)
{
	struct stat st;
	uint64_t bytes;
	int rc = io_fstat(fd, &st);

	if (rc < 0)
		return rc;
	if (S_ISREG(st.st_mode))
		return st.st_size;
	if (!S_ISBLK(st.st_mode))
		return -EINVAL;
	if (ioctl(fd, BLKGETSIZE64, &bytes) < 0)
		return -errno;
	return (int64_t)bytes;
}

int io_open_data(const char *path)
{
	_cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	int rc;

	if (fd < 0)
		return -errno;
	rc = io_fstat(fd, &st);
	if (rc == 0 && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		rc = -EINVAL;
	return rc < 0 ? rc : take_fd(&fd);
}

int io_set_nonblock(int fd, int on)
{
	int fl = fcntl(fd, F_GETFL);

	if (fl < 0)
		return -errno;
	fl = on ? fl | O_NONBLOCK : fl & ~O_NONBLOCK;
	return fcntl(fd, F_SETFL, fl) < 0 ? -errno : 0;
}

int io_read_file(const char *path, size_t max, char **out, size_t *len)
{
	_cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);

	return fd < 0 ? -errno : io_read_rest(fd, max, out, len);
}

int io_read_rest(int fd, size_t max, char **out, size_t *len)
{
	_cleanup_free char *buf = NULL;
	size_t n = 0, cap = 4096;

	/* Files in /proc and /sys have no size: read until EOF. */
	for (;;) {
		ssize_t r;
		char *p;

		if (cap > max + 1)
			cap = max + 1;
		p = realloc(buf, cap + 1);
		if (!p)
			return -ENOMEM;
		buf = p;
		r = io_read_some(fd, buf + n, cap - n);
		if (r < 0)
			return (int)r;
		if (r == 0)
			break;
		n += (size_t)r;
		if (n > max)
			return -EFBIG;
		if (n == cap)
			cap *= 2;
	}
	buf[n] = '\0';
	if (len)
		*len = n;
	*out = take_ptr(buf);
	return 0;
}

static uint64_t clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t io_now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

uint64_t io_realtime_ns(void)
{
	return clock_ns(CLOCK_REALTIME);
}

void io_time_text(int64_t ms, char out[IO_TIME_TEXT])
{
	time_t s = (time_t)(ms / 1000);
	struct tm tm;
	size_t n;

	gmtime_r(&s, &tm);
	n = strftime(out, IO_TIME_TEXT, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(out + n, IO_TIME_TEXT - n, ".%03dZ", (int)(ms % 1000));
}

int64_t io_clock_offset_ns(void)
{
	return (int64_t)(clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_MONOTONIC_RAW));
}
