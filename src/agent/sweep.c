/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups are named by their path below the directory of the agent's groups or of the top, and are
 * remembered only when it was this file that froze them. A kernel thread is told by sharing its
 * struct fs with kthreadd, which takes one call; what does not is looked up in /proc.
 */
#define _GNU_SOURCE
#include "agent/sweep.h"
#include "lib/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define SWEEP_KTHREADD   2
#define SWEEP_PF_KTHREAD 0x00200000ul /* include/linux/sched.h */
/* Of the top's directory when there is but the agent's group: its own two, and that one. */
#define SWEEP_LINKS 3

struct sweep_group {
	struct list link;
	int base; /* a directory of struct sweep or struct cgroups */
	char name[];
};

void sweep_init(struct sweep *s, struct cgroups *cs)
{
	*s = (struct sweep){.cs = cs, .top = -1, .entries = -1, .inside = -1, .outside = -1};
	list_init(&s->frozen);
}

/* Without one of the two each look is a whole one. */
static void sweep_watch(struct sweep *s, const char *path)
{
	static const char *const names[] = {"cgroup.procs", "cgroup.threads"};
	char file[PATH_MAX];

	s->inside = openat(s->cs->dirfd, "pids.current", O_RDONLY | O_CLOEXEC);
	s->entries = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	for (size_t i = 0; s->entries >= 0 && i < ARRAY_SIZE(names); i++) {
		snprintf(file, sizeof(file), "%s/%s", path, names[i]);
		if (inotify_add_watch(s->entries, file, IN_MODIFY) < 0)
			close_fd(&s->entries);
	}
}

/* Nobody has entered the top group since the last call: true when that is known. */
static bool sweep_nobody_entered(struct sweep *s)
{
	char events[512];
	bool none = s->entries >= 0;
	int n;

	while (s->entries >= 0 &&
	       (n = (int)io_read_some(s->entries, events, sizeof(events))) != -EAGAIN) {
		none = false;
		if (n <= 0)
			close_fd(&s->entries);
	}
	return none;
}

/* Threads that are in no group of the agent's: the kernel's, its own, and others; -1 = unknown. */
static long sweep_outside(const struct sweep *s)
{
	char text[32];
	struct sysinfo si;
	ssize_t n = s->inside < 0 ? -1 : pread(s->inside, text, sizeof(text) - 1, 0);

	if (n <= 0 || sysinfo(&si) < 0)
		return -1;
	text[n] = '\0';
	/* The kernel tells the lower 16 bits of its number. */
	return (long)(uint16_t)(si.procs - strtoul(text, NULL, 10));
}

int sweep_set_top(struct sweep *s, const char *path, struct err *err)
{
	if (!path || s->cs->dirfd < 0)
		return 0;
	s->top = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->top < 0)
		return err_set(err, errno, "cannot open the cgroup %s", path);
	sweep_watch(s, path);
	return 0;
}

/* Removed meanwhile: nothing is in it. */
static bool sweep_is_gone(int rc)
{
	return rc == -ENOENT || rc == -ENODEV;
}

static bool sweep_has(const struct sweep *s, int base, const char *name)
{
	list_for_each (g, &s->frozen, struct sweep_group, link)
		if (g->base == base && strcmp(g->name, name) == 0)
			return true;
	return false;
}

/* One group: frozen now if it is not, and remembered. */
static int sweep_freeze(struct sweep *s, int base, const char *name)
{
	struct sweep_group *g;
	char file[PATH_MAX];
	int rc;

	if (sweep_has(s, base, name))
		return 0;
	snprintf(file, sizeof(file), "%s/cgroup.freeze", name);
	rc = cgroup_says(base, file, "1");
	if (rc != 0)
		return rc > 0 || sweep_is_gone(rc) ? 0 : rc;
	g = malloc(sizeof(*g) + strlen(name) + 1);
	if (!g)
		return -ENOMEM;
	g->base = base;
	strcpy(g->name, name);
	list_add_tail(&s->frozen, &g->link);
	rc = cgroup_freeze_at(base, name, true);
	return sweep_is_gone(rc) ? 0 : rc;
}

/* Whether a group at the top stands still: 1, 0, -errno. */
static int sweep_group_stands(const struct sweep *s, const char *name)
{
	char file[PATH_MAX];
	int rc;

	snprintf(file, sizeof(file), "%s/cgroup.events", name);
	rc = cgroup_says(s->top, file, "frozen 1");
	return sweep_is_gone(rc) ? 1 : rc;
}

static bool sweep_is_own(const struct sweep *s, const char *name)
{
	struct stat a, b;

	return fstat(s->cs->dirfd, &a) == 0 && fstatat(s->top, name, &b, 0) == 0 &&
	       a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static DIR *sweep_open(int dirfd)
{
	int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);

	if (!d)
		close_fd(&fd);
	return d;
}

/* Freezes the groups beside the agent's: 1 when all of them stand still. */
static int sweep_groups(struct sweep *s)
{
	DIR *d = sweep_open(s->top);
	struct dirent *e;
	int rc = d ? 0 : -errno, all = 1;

	while (rc >= 0 && d && (e = readdir(d))) {
		if (e->d_type != DT_DIR || e->d_name[0] == '.' || sweep_is_own(s, e->d_name))
			continue;
		rc = sweep_freeze(s, s->top, e->d_name);
		if (rc == 0)
			rc = sweep_group_stands(s, e->d_name);
		if (rc == 0)
			all = 0;
	}
	if (d)
		closedir(d);
	return rc < 0 ? rc : all;
}

/* The flags of a process, as /proc has them: false when it has ended. */
static bool sweep_flags(pid_t pid, unsigned long *flags)
{
	char buf[512], *p;
	_cleanup_fd int fd = -1;
	ssize_t n;

	snprintf(buf, sizeof(buf), "/proc/%d/stat", (int)pid);
	fd = open(buf, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : io_read_some(fd, buf, sizeof(buf) - 1);
	if (n <= 0)
		return false;
	buf[n] = '\0';
	p = strrchr(buf, ')'); /* the name before it may have any character */
	return p && sscanf(p, ") %*c %*d %*d %*d %*d %*d %lu", flags) == 1;
}

static int sweep_compare(const void *a, const void *b)
{
	const pid_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static bool sweep_knows(const struct sweep *s, pid_t pid)
{
	return bsearch(&pid, s->known, s->nknown, sizeof(pid), sweep_compare);
}

/* What a look has found. Pages are written when there is something new only. */
static void sweep_remember(struct sweep *s, pid_t *pid, unsigned n)
{
	qsort(pid, n, sizeof(*pid), sweep_compare);
	if (n == s->nknown && memcmp(s->known, pid, n * sizeof(*pid)) == 0)
		return;
	memcpy(s->known, pid, n * sizeof(*pid));
	s->nknown = n;
}

static bool sweep_is_kernels(pid_t pid)
{
	unsigned long flags = 0;

	if (syscall(SYS_kcmp, SWEEP_KTHREADD, pid, KCMP_FS, 0, 0) == 0)
		return true;
	return sweep_flags(pid, &flags) && (flags & SWEEP_PF_KTHREAD);
}

static int sweep_take(struct sweep *s, pid_t pid)
{
	int rc;

	if (!s->strays) {
		s->strays = cgroup_new(s->cs, "strays");
		if (!s->strays)
			return -errno;
		/* By itself as well: a renewal thaws the parent. */
		rc = cgroup_freeze(s->strays, true);
		if (rc < 0)
			return rc;
	}
	rc = cgroup_enter(s->strays, pid);
	return rc == -ESRCH ? 0 : rc;
}

/* One process of the top group that is not known as the kernel's: 0 when it was moved or is let on,
 * 1 when it may stay there, 2 when it is the kernel's. */
static int sweep_process(struct sweep *s, pid_t pid, bool patient)
{
	/* 0 stands for one that this PID namespace does not see. */
	if (pid == 0)
		return -ESRCH;
	if (pid == getpid())
		return 1;
	if (sweep_is_kernels(pid))
		return 2;
	/* What the kernel starts is in no session until it makes one. */
	if (patient && getpgid(pid) == 0)
		return 0;
	return sweep_take(s, pid);
}

/* The processes of the top group: 1 when none is there that runs. */
static int sweep_processes(struct sweep *s, bool patient)
{
	int fd = openat(s->top, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	FILE *f = fd < 0 ? NULL : fdopen(fd, "re");
	int rc = f ? 0 : -errno, none = 1;
	pid_t kernels[SWEEP_KNOWN];
	unsigned n = 0;
	char line[32];

	while (rc >= 0 && f && fgets(line, sizeof(line), f)) {
		pid_t pid = (pid_t)strtol(line, NULL, 10);

		rc = sweep_knows(s, pid) ? 2 : sweep_process(s, pid, patient);
		if (rc == 0)
			none = 0;
		if (rc == 2 && n < SWEEP_KNOWN)
			kernels[n++] = pid;
	}
	if (rc >= 0 && f)
		sweep_remember(s, kernels, n);
	if (f)
		fclose(f);
	else
		close_fd(&fd);
	return rc < 0 ? rc : none;
}

static nlink_t sweep_links(int dirfd)
{
	struct stat st;

	return fstat(dirfd, &st) == 0 ? st.st_nlink : 0;
}

int sweep_look(struct sweep *s, bool patient)
{
	bool same;
	nlink_t links;
	long outside;
	int rc, all = 1;

	if (s->top < 0)
		return 1;
	links = sweep_links(s->top);
	s->others = links != SWEEP_LINKS;
	/* In this order: who enters from here on is seen by the next look. */
	same = sweep_nobody_entered(s) && !s->others && !s->strays;
	outside = sweep_outside(s);
	if (same && outside >= 0 && outside == s->outside)
		return 1;
	s->outside = -1;
	if (s->others)
		all = sweep_groups(s);
	rc = all < 0 ? all : sweep_processes(s, patient);
	if (rc < 0)
		return rc;
	/* A process that was at the top may have gone to a group that is new. */
	if (!all || !rc || sweep_links(s->top) != links)
		return 0;
	if (!s->others && !s->strays)
		s->outside = outside;
	return 1;
}

int sweep_inside(struct sweep *s, const struct cgroup *c)
{
	struct dirent *e;
	char name[PATH_MAX];
	int rc = 0;
	DIR *d;

	if (c->dirfd < 0 || sweep_links(c->dirfd) == 2)
		return 0;
	d = sweep_open(c->dirfd);
	if (!d)
		return -errno;
	while (rc == 0 && (e = readdir(d))) {
		if (e->d_type != DT_DIR || e->d_name[0] == '.')
			continue;
		snprintf(name, sizeof(name), "%s/%s", c->name, e->d_name);
		rc = sweep_freeze(s, s->cs->dirfd, name);
	}
	closedir(d);
	return rc;
}

int sweep_undo(struct sweep *s)
{
	struct cgroup top = {.dirfd = s->top};
	int rc = s->strays ? cgroup_move(s->strays, &top, 0) : 0;

	if (rc < 0)
		return rc;
	cgroup_release(s->cs, s->strays);
	s->strays = NULL;
	list_for_each_safe (g, &s->frozen, struct sweep_group, link) {
		rc = cgroup_freeze_at(g->base, g->name, false);
		if (rc < 0 && !sweep_is_gone(rc))
			return rc;
		list_del(&g->link);
		free(g);
	}
	return 0;
}
