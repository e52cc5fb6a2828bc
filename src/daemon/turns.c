/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Turns. Invariant: a turn is in the list, or running, or neither; `running`
 * counts the second kind.
 */
#include "daemon/turns.h"
#include "daemon/limits.h"

#include <unistd.h>

void turns_init(struct turns *ts, struct loop *loop, unsigned int max)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	*ts = (struct turns){.loop = loop, .max = max ? max : 2 * (unsigned int)(n < 1 ? 1 : n)};
	list_init(&ts->waiting);
}

static void turns_pump(struct turns *ts)
{
	if (ts->pumping)
		return; /* below, in go(): the loop there goes on */
	ts->pumping = true;
	while (ts->running < ts->max && !list_empty(&ts->waiting)) {
		struct turn *t = list_entry(ts->waiting.next, struct turn, link);

		list_del(&t->link);
		t->running = true;
		ts->running++;
		loop_timer_set(ts->loop, &t->timer, TURN_NS);
		t->go(t);
	}
	ts->pumping = false;
}

static void turn_on_timer(struct loop_timer *timer)
{
	turn_done(timer->arg);
}

void turn_init(struct turn *t, struct turns *ts, turn_fn *go)
{
	*t = (struct turn){.turns = ts, .go = go, .timer = {.fn = turn_on_timer, .arg = t}};
	list_init(&t->link);
}

void turn_wait(struct turn *t)
{
	list_add_tail(&t->turns->waiting, &t->link);
	turns_pump(t->turns);
}

void turn_done(struct turn *t)
{
	list_del(&t->link);
	if (!t->running)
		return;
	t->running = false;
	loop_timer_cancel(&t->timer);
	t->turns->running--;
	turns_pump(t->turns);
}
