/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Budgets of lines. Invariant: the timer is armed while there is something to tell.
 */
#include "daemon/log_budget.h"
#include "daemon/limits.h"
#include "lib/io.h"
#include "lib/log.h"

static void budget_refill(struct log_budget *b)
{
	uint64_t now = io_now_ns(), seconds = (now - b->at_ns) / SECOND_NS;
	unsigned int room = b->burst - b->lines;

	b->at_ns += seconds * SECOND_NS;
	b->lines += seconds > room / b->each_second ? room : (unsigned int)seconds * b->each_second;
}

static void budget_tell(struct log_budget *b)
{
	struct log_field f[] = {LOG_NUM("count", b->more), LOG_STR("of", b->who)};

	log_event(LOG_WARN, "http_requests beyond what is logged one by one", f, 2);
	b->more = 0;
	loop_timer_cancel(&b->tell);
}

static void budget_on_tell(struct loop_timer *t)
{
	struct log_budget *b = t->arg;

	budget_refill(b);
	if (b->lines) {
		b->lines--;
		budget_tell(b);
	} else {
		loop_timer_set(b->loop, t, SECOND_NS);
	}
}

void log_budget_init(struct log_budget *b, struct loop *loop, const char *who, unsigned int burst,
		     unsigned int each_second)
{
	*b = (struct log_budget){.loop = loop,
				 .who = who,
				 .burst = burst,
				 .each_second = each_second,
				 .lines = burst,
				 .at_ns = io_now_ns()};
	b->tell = (struct loop_timer){.fn = budget_on_tell, .arg = b};
}

bool log_budget_take(struct log_budget *b)
{
	budget_refill(b);
	if (b->lines && b->more) {
		b->lines--;
		budget_tell(b);
	}
	if (b->lines) {
		b->lines--;
		return true;
	}
	b->more++;
	if (!loop_timer_armed(&b->tell))
		loop_timer_set(b->loop, &b->tell, SECOND_NS);
	return false;
}

void log_budget_stop(struct log_budget *b)
{
	if (b->more)
		budget_tell(b);
}
