/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parts of uploads. A part is looked at only after it was locked, and counts only
 * if its name still leads to it then: the stream that held the lock before may
 * have given it its final name meanwhile.
 */
#define _GNU_SOURCE
#include "agent/put_part.h"
#include "lib/cleanup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PUT_PART_PREFIX   ".podflare-part-"
#define PUT_PART_IDLE_S   3600
#define PUT_PART_SCAN_MAX 10000 /* entries of a directory that are looked at */

void put_part_name(char name[PUT_PART_NAME], const char *id, int64_t size)
{
	snprintf(name, PUT_PART_NAME, PUT_PART_PREFIX "%.32s-%" PRId64, id, size);
}

/* A descriptor of a regular file that is locked and still has that name. */
static int put_part_lock(int dirfd, const char *name, int flags, struct stat *st)
{
	struct stat named;
	int fd = openat(dirfd, name, flags | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
	int rc;

	if (fd < 0)
		return errno == ELOOP || errno == ENXIO || errno == EISDIR ? -EEXIST : -errno;
	if (flock(fd, LOCK_EX | LOCK_NB) < 0)
		rc = errno == EWOULDBLOCK ? -EALREADY : -errno;
	else if (fstat(fd, st) < 0)
		rc = -errno;
	else if (!S_ISREG(st->st_mode) || st->st_nlink > 1)
		rc = -EEXIST;
	else if (fstatat(dirfd, name, &named, AT_SYMLINK_NOFOLLOW) < 0 ||
		 named.st_ino != st->st_ino || named.st_dev != st->st_dev)
		rc = -EALREADY;
	else
		return fd;
	close(fd);
	return rc;
}

int put_part_open(int dirfd, const char *name, bool make, uint64_t *have)
{
	struct stat st;
	int fd = put_part_lock(dirfd, name, O_WRONLY | O_APPEND | (make ? O_CREAT : 0), &st);

	if (fd >= 0)
		*have = (uint64_t)st.st_size;
	return fd;
}

void put_part_sweep(int dirfd)
{
	int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	struct dirent *e;
	struct stat st;

	if (!dir) {
		close_fd(&fd);
		return;
	}
	for (int n = 0; n < PUT_PART_SCAN_MAX && (e = readdir(dir)) != NULL; n++) {
		int part;

		if (strncmp(e->d_name, PUT_PART_PREFIX, strlen(PUT_PART_PREFIX)) != 0 ||
		    fstatat(dirfd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
		    !S_ISREG(st.st_mode) || st.st_mtime > time(NULL) - PUT_PART_IDLE_S)
			continue;
		part = put_part_lock(dirfd, e->d_name, O_WRONLY, &st);
		if (part < 0)
			continue;
		unlinkat(dirfd, e->d_name, 0);
		close(part);
	}
	closedir(dir);
}
