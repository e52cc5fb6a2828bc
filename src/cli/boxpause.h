/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What becomes of an emulated host whose disk cannot be written here. The disk is a sparse file
 * that may get larger than what this machine has room for; if the machine inside were told of an
 * error, its file system would lose what it had promised to keep, the daemon's database with it. So
 * QEMU stops the machine (werror=stop, qemu.c) until we tell it to go on, and then tries the same
 * writes again. That happens here: it is said once, and tried every BOXPAUSE_TRY_MS while there is
 * room, for as long as it takes, or until somebody ends the machine.
 *
 * Errors that are not about room (a quota, a network file system that is away) are
 * tried again as well: what waits in the machine is lost only when somebody ends it.
 *
 * Thread: the loop's. fork: plain memory.
 */
#pragma once

#include "cli/qemu.h"
#include "lib/loop.h"

#define BOXPAUSE_TRY_MS   1000
#define BOXPAUSE_SURE_MS  3000 /* it went on when it has not stopped again for so long */
#define BOXPAUSE_ROOM_MIB 32   /* with less there is no point in trying */

struct boxpause {
	struct loop *loop;
	struct loop_timer timer;
	int monitor;                 /* QMP; the owner's */
	char *disks[QEMU_DISKS_MAX]; /* paths by QEMU's number; NULL: read-only */
	void (*stands)(void *arg);   /* it has stopped, once more perhaps */
	void (*goes_on)(void *arg);
	void *arg;
	const char *disk; /* which cannot be written, one of disks; NULL when all is well */
	char reason[64];
	bool no_room;         /* that is the reason */
	const char *told_of;  /* of which disk it was said */
	bool stopped, ending; /* says QEMU: for now, for good */
};

/* stands, goes_on and arg are set by the caller before. -ENOMEM. */
__must_check int boxpause_init(struct boxpause *p, struct loop *l, const struct qemu_config *c,
			       int monitor);
/* A line that QEMU's monitor has written. */
void boxpause_line(struct boxpause *p, const char *line);
/* Whether the machine stands still now. */
bool boxpause_stands(const struct boxpause *p);
/* Has it go on at once if there is room; false: there is none, or it could not be told. */
bool boxpause_try(struct boxpause *p);
void boxpause_free(struct boxpause *p);
