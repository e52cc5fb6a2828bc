/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The line. Invariant: the timer is armed as long as one waits; each call of it begins one, or as
 * many as there is time for.
 */
#include "daemon/http_line.h"
#include "daemon/daemon.h"
#include "daemon/intake.h"
#include "daemon/limits.h"
#include "lib/io.h"

#include <string.h>

/* By number of the key; without keys there is one line. */
static struct list *line_of(const struct request *r)
{
	struct http *h = r->http;
	unsigned int key = 0;

	for (unsigned int i = 0; i < h->d->config.nkeys; i++)
		if (r->owner == h->d->owners.name[i])
			key = i;
	return &h->line.waiting[key];
}

/* Whoever has waited longest, of the key whose turn it is. */
static struct request *line_first(struct http_line *l)
{
	while (list_empty(&l->waiting[l->next]))
		l->next = (l->next + 1) % CONFIG_KEYS_MAX;
	return list_entry(l->waiting[l->next].next, struct request, waits);
}

static void line_begin(struct request *r)
{
	if (!r->reply && !r->gone && r->match.route->finish)
		r->match.route->finish(r);
	intake_drop_body(r);
}

static void line_on_timer(struct loop_timer *t)
{
	struct http *h = t->arg;
	struct http_line *l = &h->line;

	l->until = io_now_ns() + LIMIT_HTTP_TURN_NS;
	do {
		struct request *r = line_first(l);

		http_line_leave(r);
		l->next = (l->next + 1) % CONFIG_KEYS_MAX;
		line_begin(r);
	} while (l->n && io_now_ns() < l->until);
	if (l->n)
		loop_timer_set(h->loop, &l->timer, 0);
}

void http_line_init(struct http *h)
{
	struct http_line *l = &h->line;

	for (unsigned int i = 0; i < CONFIG_KEYS_MAX; i++)
		list_init(&l->waiting[i]);
	l->timer = (struct loop_timer){.fn = line_on_timer, .arg = h};
}

void http_line_turn(struct http *h)
{
	h->line.until = 0;
}

/* Whether it may go at once. */
static bool line_is_open(struct http_line *l)
{
	uint64_t now = io_now_ns();

	if (l->n == 0 && l->until == 0)
		l->until = now + LIMIT_HTTP_TURN_NS;
	return l->n == 0 && now < l->until;
}

void http_line_enter(struct request *r)
{
	const struct route *route = r->match.route;
	struct http_line *l = &r->http->line;

	if (r->reply || route->open || route->begin || line_is_open(l)) {
		line_begin(r);
		return;
	}
	list_add_tail(line_of(r), &r->waits);
	if (l->n++ == 0)
		loop_timer_set(r->http->loop, &l->timer, 0);
}

void http_line_leave(struct request *r)
{
	if (list_empty(&r->waits))
		return;
	list_del(&r->waits);
	if (--r->http->line.n == 0)
		loop_timer_cancel(&r->http->line.timer);
}

void http_line_stop(struct http *h)
{
	loop_timer_cancel(&h->line.timer);
}
