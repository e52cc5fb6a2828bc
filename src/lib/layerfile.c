/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files for layers of disks. The second descriptor is a second opening of the
 * file, not a copy of the first: only so it has rights of its own. Stateless.
 */
#define _GNU_SOURCE
#include "lib/layerfile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>

static int open_unnamed(const char *dir)
{
	int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL, 0600);
	char path[PATH_MAX];

	if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR))
		return fd < 0 ? -errno : fd;
	/* File systems without O_TMPFILE: a name for a moment. */
	if (snprintf(path, sizeof(path), "%s/layer.XXXXXX", dir) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (unlink(path) < 0) {
		int rc = -errno;

		close(fd);
		return rc;
	}
	return fd;
}

int layerfile_make(const char *dir, int *rw, int *ro)
{
	_cleanup_fd int fd = open_unnamed(dir);
	char self[64];

	if (fd < 0)
		return fd;
	snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
	*ro = open(self, O_RDONLY | O_CLOEXEC);
	if (*ro < 0)
		return -errno;
	*rw = take_fd(&fd);
	return 0;
}
