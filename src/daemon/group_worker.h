/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread for what is done to control groups. Moving a process waits until the
 * host's kernel has seen every processor pass by (RCU; 4 to 25 ms when nobody
 * else moves one), with a lock that making and removing groups need as well: in
 * the loop that would be a stop for everybody.
 *
 * Jobs are done one after the other in the order in which they came, but for
 * those that are tried again. They are embedded in the caller's objects; one
 * that was added is the worker's until its done() has been called, which may
 * free it.
 *
 * Thread: the calls from the loop's, run() from the worker's, done() from the
 * loop's. fork: descriptors are close-on-exec; the thread stays behind.
 */
#pragma once

#include "lib/err.h"
#include "lib/list.h"
#include "lib/loop.h"

#include <pthread.h>
#include <stdbool.h>

/*
 * What run() returns to be run again some milliseconds later, behind those that came meanwhile. No
 * errno: the kernel has EAGAIN for more than "try again" (mkdir(2) at cgroup.max.descendants).
 */
#define GROUP_JOB_AGAIN 1

struct group_job {
	struct list link;
	/* 0, -errno or GROUP_JOB_AGAIN. */
	int (*run)(struct group_job *j);
	void (*done)(struct group_job *j, int rc);
	int rc;
	uint64_t again_ns; /* not before */
};

struct group_worker {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct list todo, done; /* under the lock, as is stop */
	bool stop;
	bool running;
	struct loop_src src;
};

int group_worker_start(struct group_worker *w, struct loop *loop, struct err *err);
/* Does what there is to do, so it takes as long as jobs are tried again, and calls all done(). */
void group_worker_stop(struct group_worker *w);
void group_worker_add(struct group_worker *w, struct group_job *j);
