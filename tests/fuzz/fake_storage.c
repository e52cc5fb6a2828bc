/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The calls that the linker puts in place of those of the disk.
 */
#define _GNU_SOURCE
#include "fake_storage.h"
#include "input.h"

#include "vmm/disk/layer_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

struct fake_storage fake_storage;

ssize_t __real_pwritev64(int fd, const struct iovec *iov, int n, off_t off);
ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int n, off_t off);
ssize_t __real_preadv64(int fd, const struct iovec *iov, int n, off_t off);
ssize_t __wrap_preadv64(int fd, const struct iovec *iov, int n, off_t off);
int __real_fallocate64(int fd, int mode, off_t off, off_t len);
int __wrap_fallocate64(int fd, int mode, off_t off, off_t len);
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);

static bool fails(int errnum)
{
	if (!fake_storage.bad)
		return false;
	if (fake_storage.good) {
		fake_storage.good--;
		return false;
	}
	fake_storage.bad--;
	fake_storage.failures++;
	errno = errnum;
	return true;
}

static ssize_t written(const struct iovec *iov, ssize_t done)
{
	for (size_t left = done > 0 ? (size_t)done : 0, part; fake_storage.copied && left; iov++) {
		part = iov->iov_len < left ? iov->iov_len : left;
		fake_storage.copied(iov->iov_base, part);
		left -= part;
	}
	return done;
}

ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int n, off_t off)
{
	struct iovec half = {iov->iov_base, iov->iov_len / 2};

	if (!fails(ENOSPC))
		return written(iov, __real_pwritev64(fd, iov, n, off));
	/* Some of it arrives, and then no more. */
	if (!fake_storage.bad || !half.iov_len)
		return -1;
	return written(&half, __real_pwritev64(fd, &half, 1, off));
}

ssize_t __wrap_preadv64(int fd, const struct iovec *iov, int n, off_t off)
{
	return fails(EIO) ? -1 : __real_preadv64(fd, iov, n, off);
}

int __wrap_fallocate64(int fd, int mode, off_t off, off_t len)
{
	return fails(EOPNOTSUPP) ? -1 : __real_fallocate64(fd, mode, off, len);
}

int __wrap_fdatasync(int fd)
{
	return fails(EIO) ? -1 : __real_fdatasync(fd);
}

/* The names of these calls depend on how the sources are compiled: it is looked at that they fail.
 */
static void check_played(int fd)
{
	uint8_t byte = 0;
	struct iovec v = {&byte, 1};

	fake_storage.bad = 1;
	MUST(layer_file_write(fd, &(struct layer_iov){&v, 1}, 1, 0) == -ENOSPC);
	fake_storage.bad = 1;
	MUST(layer_file_read(fd, &(struct layer_iov){&v, 1}, 1, 0) == -EIO);
	fake_storage.bad = 1;
	MUST(layer_file_punch(fd, 0, 1) == -EOPNOTSUPP);
	fake_storage.bad = 1;
	MUST(layer_file_sync(fd) == -EIO && fake_storage.failures == 4);
	fake_storage = (struct fake_storage){0};
}

struct layer_fds fake_storage_layer(void)
{
	static bool checked;
	struct layer_fds f = {.rw = memfd_create("layer", MFD_CLOEXEC)};
	char path[64];

	MUST(f.rw >= 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", f.rw);
	f.ro = open(path, O_RDONLY | O_CLOEXEC);
	MUST(f.ro >= 0);
	if (!checked)
		check_played(f.rw);
	checked = true;
	return f;
}

void fake_storage_drop(struct layer_fds *f)
{
	close_fd(&f->rw);
	close_fd(&f->ro);
}
