/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What FREEZE has to stop beside the groups that the agent makes. Root in the guest may put
 * processes into the group at the top, where nothing can be frozen, make groups of its own beside
 * the agent's (a container manager), and groups inside of a session's. All of them stand still as
 * well:
 *
 *   other groups at the top     are frozen, those that are frozen already left as they are
 *   processes in the top group  are moved to a frozen group of the agent's, but for the kernel's
 *                               threads and the agent; back again when everything goes on
 *   groups inside a session's   are frozen each by itself before the session is renewed
 *
 * In the usual case there are none. To read who is in the top group writes to the task of each of
 * the kernel's threads, and to tell whose process it is touches five pages more, each of them a
 * fault in a machine that has copies. So a look is left out when since the last one that found
 * nothing no process or thread was made anywhere, as many are outside of the agent's groups,
 * nobody has written to the files by which processes enter the top group, and there are no groups
 * but the agent's. And what a look has found to be the kernel's is not asked again by the next.
 * Without a directory of the top (tests) there is nothing to be looked at.
 *
 * This is for whoever does such things in good faith. Root that races with it, or loads a module
 * into the kernel, can run whatever it likes (docs/threat-model.md).
 *
 * Thread: the loop's. fork: a copy has what is held, and lets it go with its own thaw.
 */
#pragma once

#include "agent/cgroup.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* As many threads of the kernel are remembered: there are some 60, and a few for each processor. */
#define SWEEP_KNOWN 256u

/* What nobody changes who does not make a process. */
struct sweep_mark {
	bool known;
	uint16_t outside; /* threads in no group of the agent's: the kernel's and its own */
	long last;        /* the youngest process or thread of all */
};

struct sweep {
	struct cgroups *cs;
	int top;               /* directory of the top group, or -1 */
	struct cgroup *strays; /* what was in the top group; NULL = nothing */
	struct list frozen;    /* groups that were frozen here */
	bool others;           /* there are other groups at the top */
	/*
	 * Threads of the kernel that the last look has found, in order. The number of one that has
	 * ended is forgotten by the look that misses it, and all are when somebody has entered.
	 */
	pid_t known[SWEEP_KNOWN];
	unsigned nknown;
	int entries; /* inotify on the files by which processes enter the top group, or -1 */
	int inside;  /* pids.current of the agent's groups, or -1 */
	int births;  /* /proc/loadavg, or -1 */
	struct sweep_mark quiet; /* when nothing ran at the top */
};

/* Nothing is at the top yet. */
void sweep_init(struct sweep *s, struct cgroups *cs);
/* path: the group above all; NULL leaves it so. */
__must_check int sweep_set_top(struct sweep *s, const char *path, struct err *err);
/*
 * To be called when the agent's own groups stand still: 1 when everything else does too, 0 when it
 * has to be called again, -errno when something cannot be stopped. patient: programs that the
 * kernel itself has started (modprobe) are let on, for a process may wait for one and could not be
 * frozen.
 */
__must_check int sweep_look(struct sweep *s, bool patient);
/* The groups inside c, which is frozen, are kept so when c is thawed. 0 or -errno. */
__must_check int sweep_inside(struct sweep *s, const struct cgroup *c);
/* Everything goes on where it was. */
__must_check int sweep_undo(struct sweep *s);
