/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Turns: who wants to do what costs processors waits until fewer than `max` others are at it. So a
 * burst is served one after the other, and not all of it at its end; and no guest gets so little
 * time that the limits of its agent strike.
 *
 * It is pacing, not a lock: after TURN_NS a turn counts as over, whatever became of it. Guests that
 * never answer must not hold up others either, however many of them there are:
 *
 * - The next turn is the owner's who has the fewest, and of his, the line's that has the fewest (a
 *   line: a sandbox and all that comes of it); among equals, whoever was served longest ago, or
 *   came first. Within a line it goes by arrival.
 * - A line of whose turns nothing came has one at a time, until as many were well as that takes;
 *   and all such lines together have no more than half of the turns. One whose time is over counts
 *   as such, which is taken back when it ends well after all: slow is not silent.
 *
 * Thread: the loop's. fork: no state of its own.
 */
#pragma once

#include "daemon/owner.h"
#include "lib/list.h"
#include "lib/loop.h"

#include <stdbool.h>

struct turn;
struct turn_line;

typedef void turn_fn(struct turn *turn);

struct turns {
	struct loop *loop;
	struct list lines;   /* struct turn_line: of all turns that there are */
	unsigned int silent; /* turns that run, of silent lines */
	unsigned int running, max;
	uint64_t arrived, served; /* turns that there were */
	bool pumping;
};

struct turn {
	struct list link; /* in line->waiting */
	struct turns *turns;
	struct turn_line *line;
	turn_fn *go;
	struct loop_timer timer;
	uint64_t since;              /* turns->arrived when it began to wait */
	bool running, counts_silent; /* it is one of turns->silent */
	unsigned int struck;         /* when its time was over: what its line was given for that */
};

/* max 0: two for each processor. */
void turns_init(struct turns *ts, struct loop *loop, unsigned int max);

/* line: the name of its line, of less than TURN_LINE_MAX bytes. 0 or -ENOMEM. */
__must_check int turn_init(struct turn *t, struct turns *ts, turn_fn *go, const char *owner,
			   const char *line);
#define TURN_LINE_MAX 40u
/* Its whole line is that owner's from here on. */
void turn_give(struct turn *t, const char *owner);
/* go comes when it is its turn, perhaps inside the call. */
void turn_wait(struct turn *t);
/* It is over. well: what it was for was done; else, had it begun, that is its line's fault.
 * Harmless at any time. */
void turn_done(struct turn *t, bool well);
/* It is not wanted any more. That is nobody's fault, but if its time was over. Harmless at any
 * time. */
void turn_drop(struct turn *t);
/* Harmless without turn_init(), on zeroes. */
void turn_free(struct turn *t);
