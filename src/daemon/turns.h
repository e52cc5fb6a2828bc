/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Turns: who wants to do what costs processors waits until fewer than `max` others are at it, in
 * order of arrival. So a burst is served one after the other, and not all of it at its end; and no
 * guest gets so little time that the limits of its agent strike.
 *
 * It is pacing, not a lock: after TURN_NS a turn counts as over, whatever became of it, so that
 * guests that never answer hold up nobody else.
 *
 * Thread: the loop's. fork: no state of its own.
 */
#pragma once

#include "lib/list.h"
#include "lib/loop.h"

#include <stdbool.h>

struct turn;

typedef void turn_fn(struct turn *turn);

struct turns {
	struct loop *loop;
	struct list waiting;
	unsigned int running, max;
	bool pumping;
};

struct turn {
	struct list link; /* in turns->waiting */
	struct turns *turns;
	turn_fn *go;
	struct loop_timer timer;
	bool running;
};

/* max 0: two for each processor. */
void turns_init(struct turns *ts, struct loop *loop, unsigned int max);

void turn_init(struct turn *t, struct turns *ts, turn_fn *go);
/* go comes when it is its turn, perhaps inside the call. */
void turn_wait(struct turn *t);
/* It is over, or not wanted any more. Harmless at any time. */
void turn_done(struct turn *t);
