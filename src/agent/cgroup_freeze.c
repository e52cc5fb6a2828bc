/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The freezer of cgroup v2, and the processes of a group one by one. Groups below the parent are
 * found by looking, so that those which somebody with root rights made are not forgotten. Thread:
 * the loop's. fork: no state.
 */
#define _GNU_SOURCE
#include "agent/cgroup.h"
#include "lib/dir.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Processes that fork while they are moved (which frozen ones cannot) need another look. */
#define MOVE_PASSES 16

int cgroup_freeze_at(int dirfd, const char *name, bool on)
{
	char file[NAME_MAX + 32];
	_cleanup_fd int fd = -1;

	snprintf(file, sizeof(file), "%s/cgroup.freeze", name);
	fd = openat(dirfd, file, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	return io_write_full(fd, on ? "1" : "0", 1);
}

int cgroups_freeze(const struct cgroups *cs, bool on)
{
	return cs->dirfd < 0 ? 0 : cgroup_freeze_at(cs->dirfd, ".", on);
}

int cgroup_freeze(const struct cgroup *c, bool on)
{
	return c->dirfd < 0 ? 0 : cgroup_freeze_at(c->dirfd, ".", on);
}

int cgroups_freeze_each(const struct cgroups *cs, bool on, unsigned *n)
{
	struct dirent *e;
	int fd, rc = 0;
	DIR *d;

	if (n)
		*n = 0;
	if (cs->dirfd < 0)
		return 0;
	fd = openat(cs->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	d = fd < 0 ? NULL : fdopendir(fd);
	if (!d) {
		rc = -errno;
		close_fd(&fd);
		return rc;
	}
	while (rc == 0 && (e = dir_next(d, &rc))) {
		if (e->d_type != DT_DIR || e->d_name[0] == '.')
			continue;
		rc = cgroup_freeze_at(cs->dirfd, e->d_name, on);
		/* One that has just been removed is empty. */
		if (rc == -ENOENT || rc == -ENODEV)
			rc = 0;
		else if (n)
			++*n;
	}
	closedir(d);
	return rc;
}

int cgroup_says(int dirfd, const char *file, const char *word)
{
	_cleanup_fd int fd = openat(dirfd, file, O_RDONLY | O_CLOEXEC);
	char buf[256];
	ssize_t n = fd < 0 ? -errno : io_read_some(fd, buf, sizeof(buf) - 1);

	if (n < 0)
		return (int)n;
	buf[n] = '\0';
	return strstr(buf, word) != NULL;
}

int cgroups_frozen(const struct cgroups *cs)
{
	return cs->dirfd < 0 ? 1 : cgroup_says(cs->dirfd, "cgroup.events", "frozen 1");
}

int cgroup_has_others(struct cgroup *c, pid_t pid)
{
	char buf[64], only[32];
	int n;

	if (c->dirfd < 0)
		return 0;
	n = cgroup_read(c, &c->procs, "cgroup.procs", buf, sizeof(buf));
	if (n < 0)
		return n;
	snprintf(only, sizeof(only), "%d\n", (int)pid);
	return strcmp(buf, only) != 0;
}

int cgroup_enter(const struct cgroup *c, pid_t pid)
{
	_cleanup_fd int fd = -1;
	char num[32];

	if (c->dirfd < 0)
		return 0;
	fd = openat(c->dirfd, "cgroup.procs", O_WRONLY | O_CLOEXEC);
	snprintf(num, sizeof(num), "%d", (int)pid);
	return fd < 0 ? -errno : io_write_full(fd, num, strlen(num));
}

int cgroup_signal(const struct cgroup *c, int sig)
{
	int fd = c->dirfd < 0 ? -1 : openat(c->dirfd, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	FILE *f = fd < 0 ? NULL : fdopen(fd, "re");
	char line[32];

	if (!f) {
		close_fd(&fd);
		return -ENOENT;
	}
	while (fgets(line, sizeof(line), f)) {
		pid_t pid = (pid_t)strtol(line, NULL, 10);

		/* 0 stands for a process that this PID namespace does not see. */
		if (pid > 1)
			kill(pid, sig);
	}
	fclose(f);
	return 0;
}

/* One pass: how many were moved, or -errno. */
static int move_pass(const struct cgroup *from, const struct cgroup *to, pid_t except)
{
	int in = openat(from->dirfd, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	_cleanup_fd int out = openat(to->dirfd, "cgroup.procs", O_WRONLY | O_CLOEXEC);
	FILE *f = in < 0 || out < 0 ? NULL : fdopen(in, "re");
	char line[32];
	int moved = 0, rc = 0;

	if (!f) {
		rc = errno ? -errno : -ENOMEM;
		close_fd(&in);
		return rc;
	}
	while (rc == 0 && fgets(line, sizeof(line), f)) {
		if (strtol(line, NULL, 10) == except)
			continue;
		rc = io_write_full(out, line, strlen(line));
		if (rc == 0)
			moved++;
		else if (rc == -ESRCH)
			rc = 0; /* it has ended */
	}
	fclose(f);
	return rc < 0 ? rc : moved;
}

int cgroup_move(const struct cgroup *from, const struct cgroup *to, pid_t except)
{
	int rc = 0;

	if (from->dirfd < 0 || to->dirfd < 0)
		return 0;
	for (int i = 0; i < MOVE_PASSES; i++) {
		rc = move_pass(from, to, except);
		if (rc <= 0)
			return rc;
	}
	return -EAGAIN;
}
