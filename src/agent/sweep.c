/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups are named by their path below the directory of the agent's groups or of the top, and are
 * remembered only when it was this file that froze them. A kernel thread is told by sharing its
 * struct fs with kthreadd, which takes one call; what does not is looked up in /proc.
 */
#define _GNU_SOURCE
#include "agent/sweep.h"
#include "lib/dir.h"
#include "lib/io.h"

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
	*s = (struct sweep){.cs = cs, .top = -1, .entries = -1, .inside = -1, .births = -1};
	list_init(&s->frozen);
}

/* Without one of these each look is a whole one. */
static void sweep_watch(struct sweep *s, const char *path)
{
	static const char *const names[] = {"cgroup.procs", "cgroup.threads"};
	char file[PATH_MAX];

	s->inside = openat(s->cs->dirfd, "pids.current", O_RDONLY | O_CLOEXEC);
	s->births = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
	s->entries = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	for (size_t i = 0; s->entries >= 0 && i < ARRAY_SIZE(names); i++) {
		snprintf(file, sizeof(file), "%s/%s", path, names[i]);
		if (inotify_add_watch(s->entries, file, IN_MODIFY) < 0)
			close_fd(&s->entries);
	}
}

/* Somebody may have entered the top group by its files since the last call. */
static bool sweep_entered(struct sweep *s)
{
	char events[512];
	bool entered = s->entries < 0;
	ssize_t n;

	while (s->entries >= 0 &&
	       (n = io_read_some(s->entries, events, sizeof(events))) != -EAGAIN) {
		entered = true;
		if (n <= 0)
			close_fd(&s->entries);
	}
	return entered;
}

static bool sweep_read(int fd, char *text, size_t size)
{
	ssize_t n = fd < 0 ? -1 : pread(fd, text, size - 1, 0);

	if (n <= 0)
		return false;
	text[n] = '\0';
	return true;
}

static struct sweep_mark sweep_mark_now(const struct sweep *s)
{
	char inside[32], births[128], *last;
	struct sysinfo si;

	if (!sweep_read(s->inside, inside, sizeof(inside)) ||
	    !sweep_read(s->births, births, sizeof(births)) || sysinfo(&si) < 0)
		return (struct sweep_mark){0};
	last = strrchr(births, ' ');
	return (struct sweep_mark){
		.known = last,
		/* The kernel tells the lower 16 bits of its number. */
		.outside = (uint16_t)(si.procs - strtoul(inside, NULL, 10)),
		.last = last ? strtol(last, NULL, 10) : 0,
	};
}

static bool sweep_mark_same(const struct sweep_mark *a, const struct sweep_mark *b)
{
	return a->known && b->known && a->outside == b->outside && a->last == b->last;
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
	size_t len;
	char file[PATH_MAX];
	int rc;

	if (sweep_has(s, base, name))
		return 0;
	snprintf(file, sizeof(file), "%s/cgroup.freeze", name);
	rc = cgroup_says(base, file, "1");
	if (rc != 0)
		return rc > 0 || sweep_is_gone(rc) ? 0 : rc;
	len = strlen(name) + 1;
	g = malloc(sizeof(*g) + len);
	if (!g)
		return -ENOMEM;
	g->base = base;
	memcpy(g->name, name, len);
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

	while (rc >= 0 && d && (e = dir_next(d, &rc))) {
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

/* Was moved, or is let on for now; may stay; may stay as the kernel's. */
enum sweep_verdict { SWEEP_GOES_ON, SWEEP_STAYS, SWEEP_KERNELS };

/* One process of the top group: the verdict, or -errno. */
static int sweep_process(struct sweep *s, pid_t pid, bool patient)
{
	int rc;

	/* 0 stands for one that this PID namespace does not see. */
	if (pid == 0)
		return -ESRCH;
	if (pid == getpid())
		return SWEEP_STAYS;
	if (sweep_knows(s, pid) || sweep_is_kernels(pid))
		return SWEEP_KERNELS;
	/* What the kernel starts is in no session until it makes one. */
	if (patient && getpgid(pid) == 0)
		return SWEEP_GOES_ON;
	rc = sweep_take(s, pid);
	return rc < 0 ? rc : SWEEP_GOES_ON;
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

		rc = sweep_process(s, pid, patient);
		if (rc == SWEEP_GOES_ON)
			none = 0;
		if (rc == SWEEP_KERNELS && n < SWEEP_KNOWN)
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
	struct sweep_mark now;
	nlink_t links;
	bool entered;
	int rc, all = 1;

	if (s->top < 0)
		return 1;
	/* These come first: what happens from here on is seen by the next look. */
	links = sweep_links(s->top);
	entered = sweep_entered(s);
	now = sweep_mark_now(s);
	s->others = links != SWEEP_LINKS;
	if (!entered && !s->others && !s->strays && sweep_mark_same(&now, &s->quiet))
		return 1;
	s->quiet.known = false;
	/* The number of a thread of the kernel's that has ended may be the newcomer's. */
	if (entered)
		s->nknown = 0;
	if (s->others)
		all = sweep_groups(s);
	rc = all < 0 ? all : sweep_processes(s, patient);
	if (rc < 0)
		return rc;
	/* A process that was at the top may have gone to a group that is new. */
	if (!all || !rc || sweep_links(s->top) != links)
		return 0;
	if (!s->others && !s->strays)
		s->quiet = now;
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
	while (rc == 0 && (e = dir_next(d, &rc))) {
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
