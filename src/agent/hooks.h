/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hooks of the administrator of a template: programs in a directory, run one
 * after the other as root, in the order of their names. Hidden files and those
 * that are not executable are left out, as run-parts does.
 *
 * Each has a cgroup of its own. Its end is the end of its process; what it
 * started lives on. The first that fails ends the row.
 *
 * Thread: the loop's. fork: none runs while the machine may be copied.
 */
#pragma once

#include "agent/reap.h"
#include "lib/err.h"
#include "lib/loop.h"

#include <stddef.h>

struct agent;
struct cgroup;
struct hooks;
struct output;

/* err: NULL when all went well. The callback may start the next row. */
typedef void hooks_done_fn(struct hooks *h, const struct err *err);

struct hooks {
	struct agent *agent;
	char dir[256];
	char **names; /* sorted */
	size_t count, next;
	char *const *env; /* "NAME=value", put over the base environment */
	size_t nenv;
	hooks_done_fn *done;
	void *arg;
	struct reap_child child;
	struct cgroup *cgroup;
	struct output *output;
	struct loop_timer limit;
	int wstatus;
	bool overtime;
};

void hooks_init(struct hooks *h, struct agent *a, const char *dir);
/* Looks which there are: 0, also when there is no directory, or -errno. */
__must_check int hooks_load(struct hooks *h, struct err *err);
/* Runs what hooks_load() found and calls done, at once if that is nothing. env must outlive it. */
void hooks_run(struct hooks *h, char *const *env, size_t nenv, hooks_done_fn *done, void *arg);
