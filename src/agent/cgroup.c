/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cgroup v2 directories. A released group with processes in it lingers: its
 * cgroup.events is watched by inotify, which fires when the last one is gone,
 * and then the directory is removed. Whoever waits for the end of a group's
 * processes is told the same way. Nothing polls.
 */
#define _GNU_SOURCE
#include "agent/cgroup.h"
#include "agent/spawn.h"
#include "lib/io.h"
#include "lib/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>

static int cgroup_write(int dirfd, const char *file, const char *value)
{
	_cleanup_fd int fd = openat(dirfd, file, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	return io_write_full(fd, value, strlen(value));
}

/* What is left of the parent's limit for one group; 0: there is no limit, or none can be set. */
static uint64_t cgroups_pids_max(const struct cgroups *cs)
{
	_cleanup_fd int fd = openat(cs->dirfd, "pids.max", O_RDONLY | O_CLOEXEC);
	char buf[32];
	ssize_t n = fd < 0 ? -1 : io_read_some(fd, buf, sizeof(buf) - 1);
	uint64_t max;

	if (n <= 0)
		return 0;
	buf[n] = '\0';
	max = strtoull(buf, NULL, 10); /* 0 for "max" */
	return max - max / 8;
}

static bool cgroup_try_remove(struct cgroups *cs, struct cgroup *c)
{
	return unlinkat(cs->dirfd, c->name, AT_REMOVEDIR) == 0 || errno == ENOENT;
}

static void cgroup_free(struct cgroups *cs, struct cgroup *c)
{
	if (c->watch >= 0)
		inotify_rm_watch(cs->notify.fd, c->watch);
	close_fd(&c->memory_events);
	close_fd(&c->procs);
	close_fd(&c->dirfd);
	list_del(&c->link);
	free(c);
}

/* What cannot be read is taken as empty: nobody is to wait for it for ever. */
static bool cgroup_populated(const struct cgroup *c)
{
	_cleanup_fd int fd = openat(c->dirfd, "cgroup.events", O_RDONLY | O_CLOEXEC);
	char buf[256];
	ssize_t n = fd < 0 ? -1 : io_read_some(fd, buf, sizeof(buf) - 1);

	if (n < 0)
		return false;
	buf[n] = '\0';
	return strstr(buf, "populated 1") != NULL;
}

static void cgroup_watch(struct cgroups *cs, struct cgroup *c)
{
	char file[64];

	if (c->watch >= 0)
		return;
	snprintf(file, sizeof(file), "/proc/self/fd/%d/cgroup.events", c->dirfd);
	c->watch = inotify_add_watch(cs->notify.fd, file, IN_MODIFY);
	list_del(&c->link);
	list_add_tail(&cs->watched, &c->link);
}

/* Does what was to be done when the group is empty: false when it is not, or nothing is to do. */
static bool cgroup_settle(struct cgroups *cs, struct cgroup *c)
{
	cgroup_empty_fn *fn = c->empty;

	if (c->released) {
		if (!cgroup_try_remove(cs, c))
			return false;
		cgroup_free(cs, c);
		return true;
	}
	if (!fn || cgroup_populated(c))
		return false;
	c->empty = NULL;
	fn(c->arg);
	return true;
}

/* wd: of the one whose processes have changed; negative after an overflow: any. */
static void cgroups_look(struct cgroups *cs, int wd)
{
	bool found = true;

	/* From the start again after each, for the callback may have released any of them. */
	while (found) {
		found = false;
		list_for_each (c, &cs->watched, struct cgroup, link)
			if ((wd < 0 || c->watch == wd) && cgroup_settle(cs, c)) {
				found = true;
				break;
			}
	}
}

static void cgroups_on_notify(struct loop_src *src, uint32_t events)
{
	_Alignas(struct inotify_event) char buf[4096];
	struct cgroups *cs = src->arg;
	ssize_t n = io_read_some(src->fd, buf, sizeof(buf));

	(void)events;
	for (ssize_t off = 0; off < n;) {
		const struct inotify_event *e = (const void *)(buf + off);

		off += (ssize_t)(sizeof(*e) + e->len);
		cgroups_look(cs, e->wd);
	}
}

int cgroups_init(struct cgroups *cs, struct loop *loop, const char *path, struct err *err)
{
	int fd, rc;

	*cs = (struct cgroups){.loop = loop, .dirfd = -1};
	list_init(&cs->watched);
	cs->notify = (struct loop_src){.fd = -1, .fn = cgroups_on_notify, .arg = cs};
	if (!path)
		return 0;
	if (mkdir(path, 0755) < 0 && errno != EEXIST)
		return err_set(err, errno, "cannot make the cgroup %s", path);
	cs->dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (cs->dirfd < 0)
		return err_set(err, errno, "cannot open the cgroup %s", path);
	cs->pids_max = cgroups_pids_max(cs);
	fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (fd < 0)
		return err_set(err, errno, "cannot use inotify");
	rc = loop_add(loop, &cs->notify, fd, EPOLLIN);
	return rc < 0 ? err_set(err, -rc, "cannot watch inotify") : 0;
}

int cgroups_limit(const char *path, uint64_t memory_max, uint64_t pids_max, struct err *err)
{
	_cleanup_fd int fd = -1;
	const char *file;
	char num[32];
	int rc;

	if (mkdir(path, 0755) < 0 && errno != EEXIST)
		return err_set(err, errno, "cannot make the cgroup %s", path);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return err_set(err, errno, "cannot open the cgroup %s", path);
	file = "../cgroup.subtree_control";
	rc = cgroup_write(fd, file, "+cpu +memory +pids");
	if (rc < 0)
		goto fail;
	file = "cgroup.subtree_control";
	rc = cgroup_write(fd, file, "+cpu +memory +pids");
	if (rc < 0)
		goto fail;
	file = "memory.max";
	snprintf(num, sizeof(num), "%" PRIu64, memory_max);
	rc = cgroup_write(fd, file, num);
	if (rc < 0)
		goto fail;
	file = "pids.max";
	snprintf(num, sizeof(num), "%" PRIu64, pids_max);
	rc = cgroup_write(fd, file, num);
	if (rc < 0)
		goto fail;
	return 0;
fail:
	return err_set(err, -rc, "cannot write %s/%s", path, file);
}

static void cgroup_limit_pids(const struct cgroups *cs, const struct cgroup *c)
{
	char num[32];

	snprintf(num, sizeof(num), "%" PRIu64, cs->pids_max);
	/* Without it the parent's limit holds, as it does in any case. */
	if (cs->pids_max && cgroup_write(c->dirfd, "pids.max", num) < 0)
		return;
}

struct cgroup *cgroup_new(struct cgroups *cs, const char *kind)
{
	struct cgroup *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	list_init(&c->link);
	c->dirfd = c->watch = c->memory_events = c->procs = -1;
	if (cs->dirfd < 0)
		return c;
	snprintf(c->name, sizeof(c->name), "%s-%u", kind, cs->next++);
	if (mkdirat(cs->dirfd, c->name, 0755) < 0)
		goto fail;
	c->dirfd = openat(cs->dirfd, c->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (c->dirfd >= 0) {
		cgroup_limit_pids(cs, c);
		return c;
	}
	unlinkat(cs->dirfd, c->name, AT_REMOVEDIR);
fail:
	free(c);
	return NULL;
}

void cgroup_kill(const struct cgroup *c)
{
	/* Can only fail when somebody with root rights removed the group: then it is empty. */
	if (c->dirfd >= 0 && cgroup_write(c->dirfd, "cgroup.kill", "1") < 0)
		return;
}

int cgroup_read(const struct cgroup *c, int *fd, const char *file, char *buf, size_t size)
{
	ssize_t n;

	if (*fd < 0)
		*fd = openat(c->dirfd, file, O_RDONLY | O_CLOEXEC);
	n = *fd < 0 ? -1 : pread(*fd, buf, size - 1, 0);
	if (n < 0)
		return -errno;
	buf[n] = '\0';
	return (int)n;
}

uint64_t cgroup_oom_kills(struct cgroup *c)
{
	char buf[512], *p;

	if (c->dirfd < 0 ||
	    cgroup_read(c, &c->memory_events, "memory.events", buf, sizeof(buf)) <= 0)
		return 0;
	p = strstr(buf, "oom_kill ");
	return p ? strtoull(p + strlen("oom_kill "), NULL, 10) : 0;
}

void cgroup_when_empty(struct cgroups *cs, struct cgroup *c, cgroup_empty_fn *fn, void *arg)
{
	if (c->dirfd < 0) {
		fn(arg);
		return;
	}
	c->empty = fn;
	c->arg = arg;
	cgroup_watch(cs, c);
	/* It may have become empty before the watch was there. */
	cgroup_settle(cs, c);
}

void cgroup_stop_waiting(struct cgroup *c)
{
	c->empty = NULL;
}

/* What user code has set for itself stays when it is more. */
static void end_sooner(pid_t pid)
{
	char path[48], buf[16];
	_cleanup_fd int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", (int)pid);
	fd = open(path, O_RDWR | O_CLOEXEC);
	n = fd < 0 ? -1 : io_read_some(fd, buf, sizeof(buf) - 1);
	if (n <= 0)
		return; /* it has ended */
	buf[n] = '\0';
	if (strtol(buf, NULL, 10) < strtol(SPAWN_SOONER, NULL, 10) &&
	    pwrite(fd, SPAWN_SOONER, strlen(SPAWN_SOONER), 0) < 0)
		return;
}

/*
 * Nobody looks after these processes any more. When memory runs out they go before a session, and
 * all of a group at once: of those that keep making others one by one would not be the end. What
 * cannot be written (no such controller in tests, no such process any more) changes nothing else.
 */
static void cgroup_leave_behind(struct cgroup *c)
{
	char buf[4096], *save, *end;

	if (cgroup_write(c->dirfd, "memory.oom.group", "1") < 0)
		log_debug("the group %s is not ended as one", c->name);
	/* More than fit in here are a bomb, and many of them are enough to be found by. */
	if (cgroup_read(c, &c->procs, "cgroup.procs", buf, sizeof(buf)) <= 0)
		return;
	end = strrchr(buf, '\n'); /* the last may be cut, and be another's number then */
	if (end)
		*end = '\0';
	for (char *p = strtok_r(buf, "\n", &save); p; p = strtok_r(NULL, "\n", &save))
		end_sooner((pid_t)strtol(p, NULL, 10));
}

void cgroup_release(struct cgroups *cs, struct cgroup *c)
{
	if (!c)
		return;
	c->empty = NULL;
	c->released = true;
	if (c->dirfd < 0 || cgroup_try_remove(cs, c)) {
		cgroup_free(cs, c);
		return;
	}
	cgroup_leave_behind(c);
	cgroup_watch(cs, c);
	close_fd(&c->dirfd);
	/* It may have become empty before the watch was there. */
	cgroup_settle(cs, c);
}
