/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Event loop: epoll for descriptors, a heap for one-shot timers, and nothing that
 * wakes up without a reason. Timers of the same time come in the order in which
 * they were set, and one that is set by another not before all descriptors had their
 * turn; thousands of them cost each other next to nothing.
 *
 * Sources and timers are embedded in the caller's objects; the loop allocates
 * nothing after loop_init(). A source may be removed or changed from inside
 * any callback, its own included: an event that was already fetched for a
 * removed source is not delivered. The memory of a removed source may be
 * freed inside a callback only through loop_defer_free(), or after
 * loop_run_once() has returned.
 *
 * Thread: all calls from the thread that runs the loop, except loop_mod() and
 * loop_quit(), which any thread may call. (loop_mod() is a bare epoll_ctl.)
 *
 * fork: an epoll descriptor is shared with the child and must not be touched
 * there: the child calls loop_fork_child(), which closes it and makes a new
 * empty loop; the owner of every source adds it again. No timer is armed any more.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/list.h"

#include <stdint.h>
#include <sys/epoll.h>

struct loop;
struct loop_src;
struct loop_timer;

typedef void loop_src_fn(struct loop_src *src, uint32_t events);
typedef void loop_timer_fn(struct loop_timer *t);

struct loop_src {
	int fd; /* -1 when not in a loop */
	loop_src_fn *fn;
	void *arg;
	struct loop *loop;
	uint32_t events; /* that are waited for */
};

struct loop_timer {
	loop_timer_fn *fn;
	void *arg;
	uint64_t at_ns;    /* CLOCK_MONOTONIC */
	uint64_t turn;     /* of those for the same time */
	struct loop *loop; /* while armed; else NULL */
	/* In the heap: the first below it, the next beside it, the one before or above it. */
	struct loop_timer *child, *next, *prev;
};

struct loop {
	int epfd;
	int wakefd;
	_Atomic int quit;
	struct loop_timer *timers; /* the first, on top of the heap */
	uint64_t turns;
	uint64_t rounds; /* that loop_run_once() has begun */
	struct list garbage;
	struct loop_src wake;
	struct epoll_event ev[64];
	int nev, iev; /* batch being dispatched */
};

__must_check int loop_init(struct loop *l);
void loop_free(struct loop *l);

/* Dispatches until loop_quit(). Returns 0 or -errno of epoll. */
int loop_run(struct loop *l);
/* One wait of at most timeout_ms (-1 = until something happens) and its dispatch. */
int loop_run_once(struct loop *l, int timeout_ms);
void loop_quit(struct loop *l);

/* src->fn and src->arg are set by the caller before. events: EPOLLIN, EPOLLOUT, EPOLLRDHUP... */
__must_check int loop_add(struct loop *l, struct loop_src *src, int fd, uint32_t events);
/* Changes the events waited for; 0 = only errors and hang-up are reported. */
int loop_mod(struct loop_src *src, uint32_t events);
/* Takes src out of its loop; the descriptor stays open. Harmless when it is in none. */
void loop_del(struct loop_src *src);

/* (Re)arms a one-shot timer delay_ns from now; fn and arg are set by the caller. */
void loop_timer_set(struct loop *l, struct loop_timer *t, uint64_t delay_ns);
void loop_timer_cancel(struct loop_timer *t);
static inline bool loop_timer_armed(const struct loop_timer *t)
{
	return t->loop != NULL;
}

/* Frees obj (with free()) after the current batch; its first bytes are overwritten as a list node.
 */
void loop_defer_free(struct loop *l, void *obj);

__must_check int loop_fork_child(struct loop *l);
