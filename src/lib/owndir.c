/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looks at owners and mode bits, in which the mask of an ACL is the group's. No state.
 */
#define _GNU_SOURCE
#include "lib/owndir.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OTHERS_WRITE (S_IWGRP | S_IWOTH)

int owndir_check(const char *what, const char *path, struct err *err)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return err_set(err, errno, "cannot look at %s %s", what, path);
	if (!S_ISDIR(st.st_mode))
		return err_text(err, ENOTDIR, "%s %s is not a directory", what, path);
	if (st.st_uid != geteuid())
		return err_text(
			err, EPERM,
			"%s %s belongs to another user (%u, and this is %u), who could have "
			"files of ours changed by links in it: choose one of your own, or "
			"chown it",
			what, path, st.st_uid, geteuid());
	if (st.st_mode & OTHERS_WRITE)
		return err_text(
			err, EPERM,
			"others may write to %s %s, and could have files of ours changed by "
			"links in it: chmod 700 it, and see that there are none",
			what, path);
	return 0;
}

bool owndir_above_is_open(const char *path, char which[PATH_MAX])
{
	_cleanup_free char *real = realpath(path, NULL);
	struct stat st;
	char *slash;

	if (!real)
		return false;
	while ((slash = strrchr(real, '/')) && real[1]) {
		slash[slash == real] = '\0';
		if (stat(real, &st) < 0)
			return false;
		if ((st.st_mode & OTHERS_WRITE && !(st.st_mode & S_ISVTX)) ||
		    (st.st_uid != 0 && st.st_uid != geteuid())) {
			memcpy(which, real, strlen(real) + 1);
			return true;
		}
	}
	return false;
}
