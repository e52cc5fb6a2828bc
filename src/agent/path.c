/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The default directory is read from /proc/<repl>/cwd: no question to the
 * REPL is needed, and it works while a cell runs.
 */
#define _GNU_SOURCE
#include "agent/path.h"
#include "agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void path_of_start(struct agent *a, const struct repl *r, char out[PATH_MAX])
{
	const char *home = r->root ? a->root.home : a->user.home;

	snprintf(out, PATH_MAX, "%s", r->dir ? r->dir : home);
}

/* Absolute name of the default directory. -ENOENT when it has been removed. */
static int path_default_dir(struct agent *a, const struct repl *r, char out[PATH_MAX],
			    struct err *err)
{
	struct stat here, named;
	char link[64];
	ssize_t n;

	/* Not before it is ready: until it has entered its home it is where the agent is. */
	if (r->pid > 0 && r->state >= REPL_READY) {
		snprintf(link, sizeof(link), "/proc/%d/cwd", (int)r->pid);
		n = readlink(link, out, PATH_MAX - 1);
		if (n > 0) {
			out[n] = '\0';
			/* A removed directory reads as "name (deleted)": compare what it is. */
			if (stat(link, &here) < 0 || stat(out, &named) < 0 ||
			    here.st_ino != named.st_ino || here.st_dev != named.st_dev)
				return err_text(err, ENOENT,
						"the Python session's working directory (%.300s) "
						"does not exist any more",
						out);
			return 0;
		}
	}
	path_of_start(a, r, out);
	return 0;
}

void path_of_session(struct agent *a, const struct repl *r, char out[PATH_MAX])
{
	if (path_default_dir(a, r, out, NULL) < 0)
		path_of_start(a, r, out);
}

int path_absolute(struct agent *a, const struct repl *r, const char *path, char out[PATH_MAX],
		  struct err *err)
{
	size_t n;
	int rc;

	if (path[0] == '/') {
		snprintf(out, PATH_MAX, "%s", path);
		return 0;
	}
	rc = path_default_dir(a, r, out, err);
	if (rc < 0)
		return rc;
	n = strlen(out);
	if (n == 1)
		n = 0; /* "/" */
	if ((size_t)snprintf(out + n, PATH_MAX - n, "/%s", path) >= PATH_MAX - n)
		return err_text(err, ENAMETOOLONG, "the path is longer than %d bytes",
				PATH_MAX - 1);
	return 0;
}

int path_open_dir(struct agent *a, const struct repl *r, const struct user *u, const char *path,
		  int *fd, struct err *err)
{
	char abs[PATH_MAX];
	int rc = path ? path_absolute(a, r, path, abs, err) : path_default_dir(a, r, abs, err);
	int num;

	if (rc < 0)
		return rc;
	user_fs_enter(u);
	*fd = open(abs, O_PATH | O_DIRECTORY | O_CLOEXEC);
	num = errno;
	user_fs_leave(u);
	if (*fd >= 0)
		return 0;
	/* A home that somebody removed: spawn_process() falls back to the root directory. */
	if (!path && num == ENOENT)
		return 0;
	return err_set(err, num, "cannot use %.300s as working directory", abs);
}
