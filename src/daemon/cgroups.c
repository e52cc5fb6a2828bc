/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's own place among the control groups: found and set up once, before
 * anything that could wait for it.
 */
#define _GNU_SOURCE
#include "daemon/cgroups.h"
#include "daemon/disk_of.h"
#include "daemon/vm_limits.h"
#include "lib/cgroup2.h"
#include "lib/io.h"
#include "lib/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>

#define LEFT_NS (5000000000ull) /* that processes which are killed may take to go */

int cgroups_write(int dir_fd, const char *path, const char *text)
{
	_cleanup_fd int fd = openat(dir_fd, path, O_WRONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -errno;
	/* In one piece: the kernel takes each write for a whole one. */
	n = io_write_some(fd, text, strlen(text));
	return n < 0 ? (int)n : 0;
}

/* --- what a daemon before us has left ---------------------------------------------------- */

/* Removes the groups directly below; the number of those that were there. */
static unsigned int remove_below(int dir)
{
	_cleanup_fd int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	unsigned int n = 0;
	struct dirent *e;

	if (!d)
		return 0;
	take_fd(&fd);
	while ((e = readdir(d))) {
		if (e->d_type != DT_DIR || e->d_name[0] == '.')
			continue;
		unlinkat(dir, e->d_name, AT_REMOVEDIR);
		n++;
	}
	closedir(d);
	return n;
}

/*
 * VMMs end with their daemon, so what is found here is on its way out, or a copy that
 * nobody was told of. What does not go in time stays, and so do its groups.
 */
static void remove_left(int dir, const char *name)
{
	_cleanup_fd int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	uint64_t until = io_now_ns() + LEFT_NS;
	unsigned int n;

	if (fd < 0)
		return;
	(void)!cgroups_write(fd, "cgroup.kill", "1"); /* from 5.14 on, and all below it */
	n = remove_below(fd);
	while (unlinkat(dir, name, AT_REMOVEDIR) < 0 && errno != ENOENT) {
		if (io_now_ns() > until) {
			log_warn("control groups of a daemon before this one cannot be removed "
				 "(%s: %s)",
				 name, strerror(errno));
			return;
		}
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
		remove_below(fd);
	}
	log_info("%u control groups that a daemon before this one has left were removed", n);
}

/* --- limits ------------------------------------------------------------------------------ */

static int set_io(struct cgroups *g, const struct config *c, struct err *err)
{
	unsigned long long bytes = (unsigned long long)c->cgroup_io_mib << 20;
	unsigned int maj, min;
	struct stat st;
	int rc;

	if (!c->cgroup_io_mib)
		return 0;
	if (stat(c->disk_dir, &st) < 0)
		return err_set(err, errno, "cannot look at %s", c->disk_dir);
	rc = disk_of("", st.st_dev, &maj, &min, err);
	if (rc < 0)
		return err_prefix(err,
				  "PODFLARE_CGROUP_IO_MIB is set, and the disk that the disks of "
				  "sandboxes are on (%s) cannot be limited",
				  c->disk_dir);
	snprintf(g->io, sizeof(g->io), "%u:%u rbps=%llu wbps=%llu", maj, min, bytes, bytes);
	return 0;
}

static bool in_memory(const char *dir)
{
	struct statfs fs;

	return statfs(dir, &fs) == 0 && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

/* --- start ------------------------------------------------------------------------------- */

static int turn_on(int dir, unsigned int set, struct err *err)
{
	char names[64], *save = NULL;

	cgroup2_names(set, names, sizeof(names));
	for (char *name = strtok_r(names, " ", &save); name; name = strtok_r(NULL, " ", &save)) {
		char text[16];
		int rc;

		snprintf(text, sizeof(text), "+%s", name);
		rc = cgroups_write(dir, "cgroup.subtree_control", text);
		if (rc < 0)
			return err_text(err, -rc, "the controller %s cannot be turned on: %s", name,
					rc == -EBUSY ? "other processes are in the same group"
						     : strerror(-rc));
	}
	return 0;
}

/* dir: of the group that was delegated. *move_us: how long moving ourselves took. */
static int settle(struct cgroups *g, int dir, const char *name, uint64_t *move_us, struct err *err)
{
	uint64_t t;
	int rc;

	remove_left(dir, name);
	/* Others could see below it, to the microsecond, how much each VM works. */
	if (mkdirat(dir, name, 0700) < 0 && errno != EEXIST)
		return err_set(err, errno, "a control group cannot be made");
	g->dir_fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (g->dir_fd < 0)
		return err_set(err, errno, "a control group cannot be opened");
	if (mkdirat(g->dir_fd, "daemon", 0700) < 0 && errno != EEXIST)
		return err_set(err, errno, "a control group cannot be made");
	t = io_now_ns();
	rc = cgroups_write(g->dir_fd, "daemon/cgroup.procs", "0");
	if (rc < 0)
		return err_set(err, -rc,
			       "the daemon cannot be moved to a control group of its own");
	*move_us = (io_now_ns() - t) / 1000;
	rc = turn_on(dir, g->controllers, err);
	return rc == 0 ? turn_on(g->dir_fd, g->controllers, err) : rc;
}

/* As if we had never been there; what does not work stays. */
static void unsettle(struct cgroups *g, int dir, const char *name, bool in_start)
{
	(void)!cgroups_write(dir, in_start ? CGROUP2_START "/cgroup.procs" : "cgroup.procs", "0");
	if (g->dir_fd >= 0)
		unlinkat(g->dir_fd, "daemon", AT_REMOVEDIR);
	close_fd(&g->dir_fd);
	unlinkat(dir, name, AT_REMOVEDIR);
}

static int check_controllers(struct cgroups *g, const struct config *c, struct err *err)
{
	const unsigned int main_ones = CGROUP2_CPU | CGROUP2_MEMORY | CGROUP2_PIDS;
	unsigned int missing = main_ones & ~g->controllers;
	char names[64];

	if (c->cgroup_io_mib && !(g->controllers & CGROUP2_IO))
		return err_text(err, ENOTSUP, "the controller io is not delegated");
	if (c->cgroup == CGROUP_GROUPS)
		return 0;
	cgroup2_names(missing, names, sizeof(names));
	if (missing == main_ones || (missing && c->cgroup == CGROUP_REQUIRE))
		return err_text(err, ENOTSUP, "of the controllers, these are not delegated: %s",
				names);
	return 0;
}

static void say_on(const struct cgroups *g, const struct cgroup2_place *p, uint64_t move_us)
{
	char names[64];
	const char *text = names, *dir = p->dir;

	cgroup2_names(g->controllers, names, sizeof(names));
	log_event(LOG_INFO, "every virtual machine has a control group",
		  (struct log_field[]){LOG_STR("below", dir), LOG_STR("controllers", text),
				       LOG_NUM("favordynmods", p->favordynmods),
				       LOG_NUM("move_us", move_us)},
		  4);
}

/* 0 and g->on, or why not. */
static int try_start(struct cgroups *g, const struct config *c, struct err *err)
{
	_cleanup_fd int dir = -1;
	struct cgroup2_place p;
	uint64_t move_us = 0;
	struct stat st;
	char name[64];
	int rc = cgroup2_find(&p, "", err);

	if (rc < 0)
		return rc;
	g->controllers = p.controllers;
	rc = check_controllers(g, c, err);
	if (rc < 0)
		return rc;
	/* What is not used costs all the same. */
	if (!c->cgroup_io_mib)
		g->controllers &= ~(unsigned int)CGROUP2_IO;
	dir = open(p.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0 || stat(c->state_dir, &st) < 0)
		return err_set(err, errno, "cannot use the control group %s", p.dir);
	snprintf(name, sizeof(name), "podflare-%llx-%llx", (unsigned long long)st.st_dev,
		 (unsigned long long)st.st_ino);
	rc = settle(g, dir, name, &move_us, err);
	if (rc < 0) {
		unsettle(g, dir, name, p.in_start);
		return rc;
	}
	g->on = true;
	say_on(g, &p, move_us);
	return 0;
}

static int run_prime(struct group_job *j)
{
	struct cgroups *g = list_entry(j, struct cgroups, prime);

	/* To where it is already: nothing but the wait comes of it. */
	return cgroups_write(g->dir_fd, "daemon/cgroup.procs", "0");
}

static void done_prime(struct group_job *j, int rc)
{
	(void)rc; /* the move that follows will say it */
	list_entry(j, struct cgroups, prime)->priming = false;
}

void cgroups_prime(struct cgroups *g)
{
	if (g->priming)
		return;
	g->priming = true;
	group_worker_add(&g->worker, &g->prime);
}

int cgroups_start(struct cgroups *g, struct loop *loop, const struct config *c, struct err *err)
{
	struct err why = {0};
	int rc;

	*g = (struct cgroups){.dir_fd = -1};
	g->prime = (struct group_job){.run = run_prime, .done = done_prime};
	if (c->cgroup == CGROUP_OFF) {
		if (!c->cgroup_io_mib)
			return 0;
		return err_text(err, EINVAL,
				"PODFLARE_CGROUP_IO_MIB needs control groups, and "
				"PODFLARE_CGROUP is off");
	}
	rc = set_io(g, c, err);
	if (rc < 0)
		return rc;
	g->disks_in_memory = in_memory(c->disk_dir);
	rc = try_start(g, c, &why);
	if (rc == 0)
		return group_worker_start(&g->worker, loop, err);
	if (c->cgroup != CGROUP_AUTO || c->cgroup_io_mib)
		return err_text(err, -rc,
				"virtual machines cannot have control groups with limits, which %s "
				"asks for: %s (docs/hardening.md)",
				c->cgroup == CGROUP_AUTO      ? "PODFLARE_CGROUP_IO_MIB"
				: c->cgroup == CGROUP_REQUIRE ? "PODFLARE_CGROUP=require"
							      : "PODFLARE_CGROUP=groups",
				why.msg);
	log_info("virtual machines have no control groups, and no limits but their sizes: %s",
		 why.msg);
	return 0;
}

void cgroups_stop(struct cgroups *g)
{
	if (!g->on)
		return;
	group_worker_stop(&g->worker);
	close_fd(&g->dir_fd);
	g->on = false;
}
