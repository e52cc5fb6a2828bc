/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pool. Invariant: an entry is in its template's list of its kind when its sandbox is
 * ready, or is pool->making.
 */
#include "daemon/pool.h"
#include "daemon/daemon.h"
#include "lib/io.h"
#include "lib/log.h"

#include <stdlib.h>

struct pool_entry {
	struct list link; /* template->pool[kind].ready */
	struct pool *pool;
	struct template *t;
	enum template_kind kind;
	struct sandbox *sb;
	struct sandbox_user user;
	int64_t clock_ns; /* io_clock_offset_ns() when its clock was set */
};

static void pool_make(struct pool *p);
static void pool_on_check(struct loop_timer *t);

static void pool_on_timer(struct loop_timer *t)
{
	pool_make(t->arg);
}

void pool_init(struct pool *p, struct daemon *d)
{
	*p = (struct pool){
		.d = d,
		.timer = {.fn = pool_on_timer, .arg = p},
		.check = {.fn = pool_on_check, .arg = p},
	};
}

void pool_kick(struct daemon *d)
{
	struct pool *p = &d->pool;

	if (!p->making && !d->stopping && !loop_timer_armed(&p->timer))
		loop_timer_set(&d->loop, &p->timer, p->retry_ns ? p->retry_ns : POOL_DELAY_NS);
}

static void entry_free(struct pool_entry *e)
{
	if (e->pool->making == e)
		e->pool->making = NULL;
	else
		e->t->pool[e->kind].n--;
	sandbox_drop_user(&e->user);
	list_del(&e->link);
	free(e);
}

static void entry_ended(struct sandbox_user *u, const char *reason)
{
	struct pool_entry *e = u->arg;
	struct pool *p = e->pool;

	log_warn("a ready sandbox of template %s has ended: %s", e->t->spec.name, reason);
	/* One after the other would end in a circle without a pause. */
	p->retry_ns = p->retry_ns ? p->retry_ns * 2 : POOL_RETRY_NS;
	if (p->retry_ns > POOL_RETRY_MAX_NS)
		p->retry_ns = POOL_RETRY_MAX_NS;
	entry_free(e);
	pool_kick(p->d);
}

static void entry_ready(struct sandbox *sb, void *arg)
{
	struct pool_entry *e = arg;

	(void)sb;
	e->pool->making = NULL;
	e->pool->retry_ns = 0;
	list_add_tail(&e->t->pool[e->kind].ready, &e->link);
	e->t->pool[e->kind].n++;
	e->clock_ns = io_clock_offset_ns();
	if (!loop_timer_armed(&e->pool->check))
		loop_timer_set(&e->pool->d->loop, &e->pool->check, POOL_CHECK_NS);
	pool_kick(e->pool->d);
}

/*
 * A template that has fewer of a kind than it should, and could fork now. Each look begins behind
 * what was found last: one that is used up as fast as it is filled does not keep others empty.
 */
static struct template *pool_short(struct pool *p, enum template_kind *kind)
{
	struct templates *ts = &p->d->templates;
	size_t all = ts->n * TEMPLATE_KINDS;

	for (size_t i = 0; i < all; i++) {
		size_t at = (p->next + i) % all;
		struct template *t = &ts->all[at / TEMPLATE_KINDS];
		struct template_vm *vm = template_ready(t);

		*kind = at % TEMPLATE_KINDS;
		if (!vm || !list_empty(&vm->vmm.forks) || !t->pool[*kind].used ||
		    t->pool[*kind].n >= p->d->config.pool_size)
			continue;
		p->next = at + 1;
		return t;
	}
	return NULL;
}

static void pool_make(struct pool *p)
{
	enum template_kind kind = TEMPLATE_FORKABLE;
	struct template *t = p->making || p->d->stopping ? NULL : pool_short(p, &kind);
	struct sandbox_params params;
	struct pool_entry *e;

	if (!t)
		return;
	e = calloc(1, sizeof(*e));
	if (!e) {
		pool_kick(p->d);
		return;
	}
	params = sandbox_params_of_template(template_ready(t));
	params.pool = true;
	params.forkable = kind == TEMPLATE_FORKABLE;
	e->pool = p;
	e->t = t;
	e->kind = kind;
	list_init(&e->link);
	e->sb = sandbox_new(p->d, &params, entry_ready, e);
	if (!e->sb) {
		free(e);
		pool_kick(p->d);
		return;
	}
	p->making = e;
	sandbox_add_user(e->sb, &e->user, entry_ended, e);
	sandbox_start(e->sb);
}

/* Ends those whose clock is off. */
static void pool_tidy(struct list *ready)
{
	list_for_each_safe (e, ready, struct pool_entry, link) {
		int64_t off = io_clock_offset_ns() - e->clock_ns;
		struct pool *p = e->pool;
		struct sandbox *sb = e->sb;

		if (off < (int64_t)POOL_CLOCK_NS && off > -(int64_t)POOL_CLOCK_NS)
			continue;
		entry_free(e);
		sandbox_end(sb, true, "the host's clock has moved since it was made ready");
		pool_kick(p->d);
	}
}

static void pool_on_check(struct loop_timer *t)
{
	struct pool *p = t->arg;
	bool any = false;

	for (size_t i = 0; i < p->d->templates.n; i++)
		for (enum template_kind k = 0; k < TEMPLATE_KINDS; k++) {
			struct list *ready = &p->d->templates.all[i].pool[k].ready;

			pool_tidy(ready);
			any = any || !list_empty(ready);
		}
	if (any)
		loop_timer_set(&p->d->loop, &p->check, POOL_CHECK_NS);
}

struct sandbox *pool_take(struct template *t, bool forkable)
{
	struct list *ready = &t->pool[template_kind(forkable)].ready;
	struct pool_entry *e;
	struct sandbox *sb;

	pool_tidy(ready);
	if (list_empty(ready))
		return NULL;
	e = list_entry(ready->next, struct pool_entry, link);
	sb = e->sb;
	entry_free(e);
	return sb;
}

static void pool_let_go(struct list *ready)
{
	while (!list_empty(ready))
		entry_free(list_entry(ready->next, struct pool_entry, link));
}

void pool_stop(struct pool *p)
{
	loop_timer_cancel(&p->timer);
	loop_timer_cancel(&p->check);
	if (p->making)
		entry_free(p->making);
	for (size_t i = 0; i < p->d->templates.n; i++)
		for (enum template_kind k = 0; k < TEMPLATE_KINDS; k++)
			pool_let_go(&p->d->templates.all[i].pool[k].ready);
}
