/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Alarms. Invariant: while agent->alarms_rest no timer of an alarm is in the
 * loop; otherwise each alarm that is set has one there.
 */
#include "agent/alarm.h"
#include "agent/agent.h"
#include "lib/io.h"

static void alarm_on_timer(struct loop_timer *timer)
{
	struct alarm *t = timer->arg;

	list_del(&t->link);
	t->fn(t->arg);
}

void alarm_init(struct alarm *t, struct agent *a, alarm_fn *fn, void *arg)
{
	*t = (struct alarm){.agent = a, .fn = fn, .arg = arg};
	t->timer = (struct loop_timer){.fn = alarm_on_timer, .arg = t};
	list_init(&t->link);
}

void alarm_set(struct alarm *t, uint64_t delay_ns)
{
	alarm_cancel(t);
	list_add_tail(&t->agent->alarms, &t->link);
	t->left_ns = delay_ns;
	if (!t->agent->alarms_rest)
		loop_timer_set(&t->agent->loop, &t->timer, delay_ns);
}

void alarm_cancel(struct alarm *t)
{
	if (!alarm_is_set(t))
		return;
	list_del(&t->link);
	loop_timer_cancel(&t->timer);
}

static uint64_t alarm_until(const struct alarm *t, uint64_t now)
{
	return t->timer.at_ns > now ? t->timer.at_ns - now : 1;
}

uint64_t alarm_left(const struct alarm *t)
{
	if (!alarm_is_set(t))
		return 0;
	return t->agent->alarms_rest ? t->left_ns : alarm_until(t, io_now_ns());
}

void alarms_rest(struct agent *a)
{
	uint64_t now = io_now_ns();

	if (a->alarms_rest)
		return;
	a->alarms_rest = true;
	list_for_each (t, &a->alarms, struct alarm, link) {
		loop_timer_cancel(&t->timer);
		t->left_ns = alarm_until(t, now);
	}
}

void alarms_wake(struct agent *a)
{
	if (!a->alarms_rest)
		return;
	a->alarms_rest = false;
	list_for_each (t, &a->alarms, struct alarm, link)
		loop_timer_set(&a->loop, &t->timer, t->left_ns);
}
