/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log files. Stateless.
 */
#define _GNU_SOURCE
#include "agent/log_file.h"
#include "agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static int log_file_open(const struct agent *a, const char *path)
{
	int fd;

	if (mkdir(a->log_dir, 0700) < 0 && errno != EEXIST)
		return -errno;
	/* No log has this name now: what is there was put there by the user. */
	if (unlink(path) < 0 && errno != ENOENT)
		return -errno;
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	return fd < 0 ? -errno : fd;
}

int log_file_create(struct agent *a, const char *path)
{
	int rc;

	user_fs_enter(&a->user);
	rc = log_file_open(a, path);
	user_fs_leave(&a->user);
	return rc;
}

/* With his rights: what has come into its place is his. */
void log_file_unlink(struct agent *a, const char *path)
{
	user_fs_enter(&a->user);
	unlink(path);
	user_fs_leave(&a->user);
}
