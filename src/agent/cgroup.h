/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One cgroup (v2) for each command and for the REPL, below one parent that
 * carries the limits of all user processes. A cgroup can be killed whole,
 * whatever its processes did with sessions and process groups, and has the same
 * share of the processors as any other, however many processes are in it.
 *
 * Without a parent directory (agent tests of an ordinary user) the groups are
 * empty shells: dirfd is -1 and killing falls to the caller's process group.
 *
 * Thread: the loop's. fork: dirfd is close-on-exec; spawn.c puts the child in.
 */
#pragma once

#include "lib/err.h"
#include "lib/loop.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

typedef void cgroup_empty_fn(void *arg);

struct cgroups {
	struct loop *loop;
	int dirfd; /* parent directory, or -1 */
	unsigned next;
	uint64_t pids_max;      /* of each group, 0 = none: less than the parent's */
	struct loop_src notify; /* inotify: cgroup.events of the groups in watched */
	struct list watched;    /* released, or somebody waits; processes are left in them */
};

struct cgroup {
	struct list link; /* in watched */
	int dirfd;
	int watch; /* inotify watch, -1 = none */
	/* Files that are read with every call stay open, from the first time on; -1 = not yet. */
	int memory_events, procs;
	bool released;
	cgroup_empty_fn *empty; /* somebody waits for the end of the last process */
	void *arg;
	char name[32];
};

/* path == NULL: no cgroups. Otherwise makes the parent if it is not there. */
__must_check int cgroups_init(struct cgroups *cs, struct loop *loop, const char *path,
			      struct err *err);
/* Limits of everything below the parent, and accounting for each group. Boot calls it. */
__must_check int cgroups_limit(const char *path, uint64_t memory_max, uint64_t pids_max,
			       struct err *err);

/*
 * New group "<kind>-<n>"; NULL with errno set. It may have seven eighths of the processes that the
 * parent may have: what one call starts, and leaves behind, does not keep the next from starting.
 */
struct cgroup *cgroup_new(struct cgroups *cs, const char *kind);
/*
 * Freezing. A group stands still when itself or the parent of all is frozen.
 * Without groups all of these do nothing, and everything counts as frozen.
 */
/* Freezes or thaws the parent, and with it all groups, also those not made yet. */
__must_check int cgroups_freeze(const struct cgroups *cs, bool on);
/* The same for each group by itself. *n: how many there are; may be NULL. */
__must_check int cgroups_freeze_each(const struct cgroups *cs, bool on, unsigned *n);
/* 1 when the freezing of the parent is complete, 0 when not yet, -errno. */
__must_check int cgroups_frozen(const struct cgroups *cs);
__must_check int cgroup_freeze(const struct cgroup *c, bool on);
/* Of a group by its name below an open directory. */
__must_check int cgroup_freeze_at(int dirfd, const char *name, bool on);
/* Whether one of its files has this word in it: 1, 0, -errno. */
__must_check int cgroup_says(int dirfd, const char *file, const char *word);
/* 1 when there are processes beside this one in it, 0 when not (or without groups), -errno. */
__must_check int cgroup_has_others(struct cgroup *c, pid_t pid);
/* Moves one process into a group, with its threads. */
__must_check int cgroup_enter(const struct cgroup *c, pid_t pid);
/* Sends the signal to each process in it: 0, also when one has just ended; -ENOENT without groups.
 */
__must_check int cgroup_signal(const struct cgroup *c, int sig);
/* Moves all processes but `except` (0 = none) from one group to another. */
__must_check int cgroup_move(const struct cgroup *from, const struct cgroup *to, pid_t except);

/* What one of its files says, which is kept open in *fd: bytes in buf (a string), or -errno. */
__must_check int cgroup_read(const struct cgroup *c, int *fd, const char *file, char *buf,
			     size_t size);
/* SIGKILL to every process in it, also to those that it is starting just now. */
void cgroup_kill(const struct cgroup *c);
/*
 * Calls fn when no process is left in it: at once (also without groups), or from the loop. One at a
 * time waits for a group; cgroup_release() and cgroup_stop_waiting() give the wait up.
 */
void cgroup_when_empty(struct cgroups *cs, struct cgroup *c, cgroup_empty_fn *fn, void *arg);
void cgroup_stop_waiting(struct cgroup *c);
/* Processes of this group that the kernel killed for memory so far. */
uint64_t cgroup_oom_kills(struct cgroup *c);
/*
 * Gives the group up: the directory goes when the last process is gone. What is left in it is ended
 * before others, and as one, when memory runs out. NULL is harmless.
 */
void cgroup_release(struct cgroups *cs, struct cgroup *c);
