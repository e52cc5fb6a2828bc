/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Positioned scatter and gather on one file, with EINTR and short transfers
 * handled. Stateless; any thread; nothing to do on fork.
 */
#define _GNU_SOURCE
#include "vmm/disk/layer_file.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

uint64_t layer_iov_bytes(const struct layer_iov *at)
{
	uint64_t sum = 0;

	for (int i = 0; i < at->n; i++)
		sum += at->v[i].iov_len;
	return sum;
}

/* Moves on, and past empty elements. */
static void advance(struct layer_iov *at, size_t len)
{
	while (at->n && (len || at->v->iov_len == 0)) {
		size_t part = at->v->iov_len < len ? at->v->iov_len : len;

		at->v->iov_base = (uint8_t *)at->v->iov_base + part;
		at->v->iov_len -= part;
		len -= part;
		if (at->v->iov_len == 0) {
			at->v++;
			at->n--;
		}
	}
}

void layer_iov_zero(struct layer_iov *at, uint64_t len)
{
	while (len) {
		size_t part = at->v->iov_len < len ? at->v->iov_len : (size_t)len;

		memset(at->v->iov_base, 0, part);
		advance(at, part);
		len -= part;
	}
}

typedef ssize_t transfer_fn(int fd, const struct iovec *iov, int n, off_t off);

/* One system call for at most len bytes: count or -errno. */
static ssize_t transfer(transfer_fn *fn, int fd, struct layer_iov *at, uint64_t len, uint64_t off)
{
	size_t cut = 0;
	ssize_t done;
	int n = 0;

	/* The element in which the length ends is shortened for the duration of the call. */
	for (uint64_t left = len; left; n++) {
		if (at->v[n].iov_len > left) {
			cut = at->v[n].iov_len - (size_t)left;
			at->v[n].iov_len = (size_t)left;
		}
		left -= at->v[n].iov_len;
	}
	do
		done = fn(fd, at->v, n, (off_t)off);
	while (done < 0 && errno == EINTR);
	if (done < 0)
		done = -errno;
	if (cut)
		at->v[n - 1].iov_len += cut;
	if (done > 0)
		advance(at, (size_t)done);
	return done;
}

int layer_file_read(int fd, struct layer_iov *at, uint64_t len, uint64_t off)
{
	while (len) {
		ssize_t done = transfer(preadv, fd, at, len, off);

		if (done < 0)
			return (int)done;
		if (done == 0) {
			layer_iov_zero(at, len); /* beyond the end of the file */
			return 0;
		}
		len -= (uint64_t)done;
		off += (uint64_t)done;
	}
	return 0;
}

int layer_file_write(int fd, struct layer_iov *at, uint64_t len, uint64_t off)
{
	while (len) {
		ssize_t done = transfer(pwritev, fd, at, len, off);

		if (done < 0)
			return (int)done;
		if (done == 0)
			return -EIO;
		len -= (uint64_t)done;
		off += (uint64_t)done;
	}
	return 0;
}

int layer_file_punch(int fd, uint64_t off, uint64_t len)
{
	int rc;

	do
		rc = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off,
			       (off_t)len);
	while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

int layer_file_sync(int fd)
{
	int rc;

	do
		rc = fdatasync(fd);
	while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

int layer_file_check(struct layer_fds fds)
{
	struct stat rw, ro;
	int rc = io_fstat(fds.rw, &rw);

	if (rc == 0)
		rc = io_fstat(fds.ro, &ro);
	if (rc < 0)
		return rc;
	if ((fcntl(fds.rw, F_GETFL) & (O_ACCMODE | O_APPEND)) != O_RDWR ||
	    (fcntl(fds.ro, F_GETFL) & O_ACCMODE) != O_RDONLY || !S_ISREG(rw.st_mode) ||
	    rw.st_dev != ro.st_dev || rw.st_ino != ro.st_ino || rw.st_size != 0)
		return -EINVAL;
	return 0;
}

int64_t layer_file_bytes(int fd)
{
	struct stat st;
	int rc = io_fstat(fd, &st);

	return rc < 0 ? rc : (int64_t)st.st_blocks * 512;
}
