/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Timers of what the user's processes do: deadlines, grace times. They stand
 * still while everything is frozen, for those whom they are meant for cannot
 * do anything then, and go on with the time that was left.
 *
 * An alarm is embedded in its owner, who cancels it before he is freed. fn may
 * set it again, or free the owner.
 * Thread: the loop's. fork: a copy goes on with what was left.
 */
#pragma once

#include "lib/list.h"
#include "lib/loop.h"

#include <stdbool.h>
#include <stdint.h>

struct agent;

typedef void alarm_fn(void *arg);

struct alarm {
	struct list link; /* in agent->alarms while set */
	struct agent *agent;
	struct loop_timer timer;
	uint64_t left_ns; /* while everything rests */
	alarm_fn *fn;
	void *arg;
};

void alarm_init(struct alarm *t, struct agent *a, alarm_fn *fn, void *arg);
/* Calls fn once, delay_ns from now, unless it is set again or cancelled before. */
void alarm_set(struct alarm *t, uint64_t delay_ns);
/* Harmless when it is not set, or not initialised (all zero). */
void alarm_cancel(struct alarm *t);
static inline bool alarm_is_set(const struct alarm *t)
{
	return t->link.next && !list_empty(&t->link);
}

/* Nanoseconds until then, at least 1; 0 when it is not set. */
uint64_t alarm_left(const struct alarm *t);

/* All of them. */
void alarms_rest(struct agent *a);
void alarms_wake(struct agent *a);
