/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Event loop on epoll. One thread runs it. Invariants: every armed source has
 * src->loop set and is in the epoll set; timers are in a pairing heap, none before
 * the one above it; an
 * event fetched for a source that was removed meanwhile is blanked in the
 * batch, so that callbacks never see a removed source.
 */
#define _GNU_SOURCE
#include "lib/loop.h"
#include "lib/io.h"

#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>

static void loop_on_wake(struct loop_src *src, uint32_t events)
{
	uint64_t n;

	(void)events;
	if (io_read_some(src->fd, &n, sizeof(n)) < 0)
		return; /* already drained */
}

int loop_init(struct loop *l)
{
	int rc;

	*l = (struct loop){.epfd = -1, .wakefd = -1};
	list_init(&l->garbage);
	l->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (l->epfd < 0)
		return -errno;
	l->wakefd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (l->wakefd < 0) {
		rc = -errno;
		goto fail;
	}
	l->wake = (struct loop_src){.fd = -1, .fn = loop_on_wake};
	rc = loop_add(l, &l->wake, l->wakefd, EPOLLIN);
	if (rc < 0)
		goto fail;
	return 0;
fail:
	loop_free(l);
	return rc;
}

static void loop_collect(struct loop *l)
{
	while (!list_empty(&l->garbage)) {
		struct list *n = l->garbage.next;

		list_del(n);
		free(n);
	}
}

void loop_free(struct loop *l)
{
	close_fd(&l->epfd);
	close_fd(&l->wakefd);
	loop_collect(l);
}

int loop_fork_child(struct loop *l)
{
	while (l->timers)
		loop_timer_cancel(l->timers);
	close_fd(&l->epfd);
	close_fd(&l->wakefd);
	return loop_init(l);
}

int loop_add(struct loop *l, struct loop_src *src, int fd, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.ptr = src};

	if (epoll_ctl(l->epfd, EPOLL_CTL_ADD, fd, &e) < 0)
		return -errno;
	src->fd = fd;
	src->loop = l;
	src->events = events;
	return 0;
}

int loop_mod(struct loop_src *src, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.ptr = src};

	if (!src->loop)
		return -ENOENT;
	/* Edges come again after a call that changes nothing; levels need none. */
	if (events == src->events && !(events & EPOLLET))
		return 0;
	if (epoll_ctl(src->loop->epfd, EPOLL_CTL_MOD, src->fd, &e) < 0)
		return -errno;
	src->events = events;
	return 0;
}

void loop_del(struct loop_src *src)
{
	struct loop *l = src->loop;

	if (!l)
		return;
	epoll_ctl(l->epfd, EPOLL_CTL_DEL, src->fd, NULL);
	for (int i = l->iev; i < l->nev; i++)
		if (l->ev[i].data.ptr == src)
			l->ev[i].data.ptr = NULL;
	src->loop = NULL;
	src->fd = -1;
}

/* --- timers ------------------------------------------------------------------------------ */

static bool timer_before(const struct loop_timer *a, const struct loop_timer *b)
{
	return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->turn < b->turn;
}

/* Two heaps, which may be NULL, as one. */
static struct loop_timer *timers_meld(struct loop_timer *a, struct loop_timer *b)
{
	if (!a || !b)
		return a ? a : b;
	if (timer_before(b, a)) {
		struct loop_timer *t = a;

		a = b;
		b = t;
	}
	b->prev = a;
	b->next = a->child;
	if (a->child)
		a->child->prev = b;
	a->child = b;
	return a;
}

/* A row of heaps as one: in pairs, and these from the last to the first. */
static struct loop_timer *timers_meld_row(struct loop_timer *row)
{
	struct loop_timer *pairs = NULL, *all = NULL;

	while (row) {
		struct loop_timer *a = row, *b = a->next;

		row = b ? b->next : NULL;
		a->next = a->prev = NULL;
		if (b)
			b->next = b->prev = NULL;
		a = timers_meld(a, b);
		a->next = pairs;
		pairs = a;
	}
	while (pairs) {
		struct loop_timer *a = pairs;

		pairs = a->next;
		a->next = NULL;
		all = timers_meld(all, a);
	}
	return all;
}

void loop_timer_set(struct loop *l, struct loop_timer *t, uint64_t delay_ns)
{
	loop_timer_cancel(t);
	t->at_ns = io_now_ns() + delay_ns;
	t->turn = l->turns++;
	t->loop = l;
	l->timers = timers_meld(l->timers, t);
}

void loop_timer_cancel(struct loop_timer *t)
{
	struct loop *l = t->loop;
	struct loop_timer *below;

	if (!l)
		return;
	below = timers_meld_row(t->child);
	if (t == l->timers) {
		l->timers = below;
	} else {
		if (t->prev->child == t)
			t->prev->child = t->next;
		else
			t->prev->next = t->next;
		if (t->next)
			t->next->prev = t->prev;
		l->timers = timers_meld(l->timers, below);
	}
	t->child = t->next = t->prev = NULL;
	t->loop = NULL;
}

void loop_defer_free(struct loop *l, void *obj)
{
	struct list *n = obj;

	if (!n)
		return;
	list_init(n);
	list_add_tail(&l->garbage, n);
}

/* Milliseconds until the first timer, rounded up, bounded by limit_ms (-1 = none). */
static int loop_timeout(const struct loop *l, int limit_ms)
{
	uint64_t now, at, ms;

	if (!l->timers)
		return limit_ms;
	now = io_now_ns();
	at = l->timers->at_ns;
	ms = at <= now ? 0 : (at - now + 999999) / 1000000;
	if (ms > INT_MAX)
		ms = INT_MAX;
	return limit_ms >= 0 && (uint64_t)limit_ms < ms ? limit_ms : (int)ms;
}

/* Those that are set meanwhile have to wait for the next round, as the time may stand still. */
static void loop_run_timers(struct loop *l)
{
	uint64_t now = io_now_ns(), turns = l->turns;

	while (l->timers && l->timers->at_ns <= now && l->timers->turn < turns) {
		struct loop_timer *t = l->timers;

		loop_timer_cancel(t);
		t->fn(t);
	}
}

int loop_run_once(struct loop *l, int timeout_ms)
{
	int n = epoll_wait(l->epfd, l->ev, (int)ARRAY_SIZE(l->ev), loop_timeout(l, timeout_ms));

	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	l->rounds++;
	l->nev = n;
	for (l->iev = 0; l->iev < l->nev;) {
		struct epoll_event e = l->ev[l->iev++];
		struct loop_src *src = e.data.ptr;

		if (src)
			src->fn(src, e.events);
	}
	l->nev = l->iev = 0;
	loop_run_timers(l);
	loop_collect(l);
	return 0;
}

int loop_run(struct loop *l)
{
	int rc = 0;

	while (rc == 0 && !atomic_load_explicit(&l->quit, memory_order_acquire))
		rc = loop_run_once(l, -1);
	return rc;
}

void loop_quit(struct loop *l)
{
	uint64_t one = 1;

	atomic_store_explicit(&l->quit, 1, memory_order_release);
	/* A full eventfd counter wakes the loop just as well. */
	if (io_write_some(l->wakefd, &one, sizeof(one)) < 0)
		return;
}
