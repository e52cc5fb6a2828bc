/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reaping of child processes. As PID 1 the agent inherits every orphan: all
 * are waited for, and those that somebody registered are reported to him.
 *
 * A reap_child is embedded in its owner, registered after the start and taken
 * out before the report, so that fn may start the next process with it.
 * Thread: the loop's. fork: the child unblocks SIGCHLD (spawn.c).
 */
#pragma once

#include "lib/err.h"
#include "lib/loop.h"

#include <sys/types.h>

struct reap_child;
typedef void reap_fn(struct reap_child *c, int wstatus);
typedef void reap_stop_fn(struct reap_child *c);

struct reap_child {
	struct list link;
	pid_t pid;
	reap_fn *fn;
	reap_stop_fn *stopped; /* also told when a signal has stopped it; may be NULL */
	void *arg;
};

struct reaper {
	struct loop_src src; /* signalfd of SIGCHLD */
	struct list children;
};

__must_check int reaper_init(struct reaper *r, struct loop *loop, struct err *err);
/* Reports the end of c->pid to c->fn, once, from the loop. */
void reaper_watch(struct reaper *r, struct reap_child *c);
