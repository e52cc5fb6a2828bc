/* SPDX-License-Identifier: Apache-2.0 */
/*
 * c-ares, driven by the loop: its sockets are sources, its next timeout is a
 * timer. c-ares cannot forget a single question, so a query that was given up
 * stays, without anybody to tell, until c-ares calls back. It is asked for both
 * kinds of addresses apart: the deadline must find what came of one while servers are silent about
 * the other. Invariants: a query is in r->queries until c-ares has called back for both; fn is NULL
 * once the answer was given or given up, and r->abandoned counts these; a query is in r->waiting,
 * too, while it is not c-ares's: its time has not come (RESOLVER_PER_S). One that is given up there
 * is gone at once.
 */
#define _GNU_SOURCE
#include "egress/resolver.h"

#include "lib/io.h"
#include "lib/list.h"

#include <ares.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#define TRY_MS 1500
#define TRIES  2

#define PACE_NS (1000000000ull / RESOLVER_PER_S)

struct resolver {
	struct loop *loop;
	ares_channel channel;
	char *host_servers; /* csv, as it was at start */
	struct list sockets, queries, waiting;
	size_t abandoned;
	unsigned int tokens; /* questions that may go out at once */
	uint64_t tokens_at_ns;
	struct loop_timer timer, pace; /* pace: when one that waits may go out */
};

struct resolver_socket {
	struct list link; /* first: loop_defer_free() */
	struct loop_src src;
	struct resolver *r;
};

struct resolver_query {
	struct list link, wait;
	struct resolver *r;
	char *name; /* while it waits */
	resolver_fn *fn;
	void *arg;
	bool *answered; /* of the call that asks, while it lasts */
	struct loop_timer deadline;
	unsigned int left; /* of kinds, while it is c-ares's */
	struct resolver_answer kinds[2];
};

static void resolver_abandon(struct resolver_query *q);
static void resolver_pace(struct loop_timer *t);

/* --- c-ares on the loop --------------------------------------------------------------------- */

static void resolver_rearm(struct resolver *r)
{
	struct timeval tv, *next = ares_timeout(r->channel, NULL, &tv);

	loop_timer_cancel(&r->timer);
	if (next)
		loop_timer_set(r->loop, &r->timer,
			       (uint64_t)next->tv_sec * 1000000000u +
				       (uint64_t)next->tv_usec * 1000u + 1000000u);
}

static void resolver_on_timer(struct loop_timer *t)
{
	struct resolver *r = t->arg;

	ares_process_fd(r->channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
	resolver_rearm(r);
}

static void resolver_on_socket(struct loop_src *src, uint32_t events)
{
	struct resolver_socket *s = src->arg;
	struct resolver *r = s->r;
	int fd = src->fd;
	bool in = events & (EPOLLIN | EPOLLHUP | EPOLLERR), out = events & EPOLLOUT;

	/* s may be gone from here on */
	ares_process_fd(r->channel, in ? fd : ARES_SOCKET_BAD, out ? fd : ARES_SOCKET_BAD);
	resolver_rearm(r);
}

static struct resolver_socket *resolver_socket_find(struct resolver *r, int fd)
{
	list_for_each (s, &r->sockets, struct resolver_socket, link)
		if (s->src.fd == fd)
			return s;
	return NULL;
}

/* c-ares tells what it waits for on a socket; nothing any more: it closes it next. */
static void resolver_on_state(void *arg, ares_socket_t fd, int readable, int writable)
{
	struct resolver *r = arg;
	struct resolver_socket *s = resolver_socket_find(r, fd);
	uint32_t events = (readable ? EPOLLIN : 0u) | (writable ? EPOLLOUT : 0u);

	if (!events) {
		if (s) {
			loop_del(&s->src);
			list_del(&s->link);
			loop_defer_free(r->loop, s);
		}
		return;
	}
	if (s) {
		loop_mod(&s->src, events);
		return;
	}
	s = calloc(1, sizeof(*s));
	if (!s)
		return; /* the question times out */
	s->r = r;
	s->src = (struct loop_src){.fd = -1, .fn = resolver_on_socket, .arg = s};
	if (loop_add(r->loop, &s->src, fd, events) < 0) {
		free(s);
		return;
	}
	list_add_tail(&r->sockets, &s->link);
}

/* --- start and end -------------------------------------------------------------------------- */

/* What ares_set_servers_ports_csv() reads. */
static int resolver_save_servers(struct resolver *r)
{
	struct ares_addr_port_node *list = NULL;
	size_t cap = 1;
	char *text, *at;

	if (ares_get_servers_ports(r->channel, &list) != ARES_SUCCESS)
		return -EIO;
	for (struct ares_addr_port_node *n = list; n; n = n->next)
		cap += INET6_ADDRSTRLEN + sizeof("[]:65535,");
	text = at = calloc(1, cap);
	for (struct ares_addr_port_node *n = list; n && text; n = n->next) {
		char a[INET6_ADDRSTRLEN];

		ares_inet_ntop(n->family, &n->addr, a, sizeof(a));
		at += snprintf(at, cap - (size_t)(at - text), n->family == AF_INET6 ? "[%s]" : "%s",
			       a);
		if (n->udp_port)
			at += snprintf(at, cap - (size_t)(at - text), ":%d", n->udp_port);
		if (n->next)
			*at++ = ',';
	}
	ares_free_data(list);
	r->host_servers = text;
	return text ? 0 : -ENOMEM;
}

int resolver_new(struct resolver **out, struct loop *loop, struct err *err)
{
	struct resolver *r = calloc(1, sizeof(*r));
	/* No search list, no file of hosts, no sorting by routes: exactly the name that was asked.
	 */
	struct ares_options o = {
		.flags = ARES_FLAG_NOSEARCH | ARES_FLAG_NOALIASES,
		.timeout = TRY_MS,
		.tries = TRIES,
		.lookups = (char *)(uintptr_t) "b",
		.sock_state_cb = resolver_on_state,
		.sock_state_cb_data = r,
	};
	int rc;

	if (!r)
		return err_text(err, ENOMEM, "no memory");
	r->loop = loop;
	list_init(&r->sockets);
	list_init(&r->queries);
	list_init(&r->waiting);
	r->tokens = RESOLVER_PER_S;
	r->tokens_at_ns = io_now_ns();
	r->timer = (struct loop_timer){.fn = resolver_on_timer, .arg = r};
	r->pace = (struct loop_timer){.fn = resolver_pace, .arg = r};
	rc = ares_library_init(ARES_LIB_INIT_ALL);
	if (rc == ARES_SUCCESS)
		rc = ares_init_options(&r->channel, &o,
				       ARES_OPT_FLAGS | ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES |
					       ARES_OPT_LOOKUPS | ARES_OPT_SOCK_STATE_CB);
	if (rc != ARES_SUCCESS) {
		r->channel = NULL;
		err_text(err, EIO, "the resolver cannot start: %s", ares_strerror(rc));
	} else if (resolver_save_servers(r) < 0) {
		rc = -1;
		err_text(err, EIO, "the resolver does not tell its servers");
	}
	if (rc) {
		resolver_free(r);
		return -EIO;
	}
	*out = r;
	return 0;
}

void resolver_free(struct resolver *r)
{
	if (!r)
		return;
	list_for_each_safe (q, &r->queries, struct resolver_query, link)
		resolver_abandon(q);
	if (r->channel)
		ares_destroy(r->channel);
	loop_timer_cancel(&r->timer);
	loop_timer_cancel(&r->pace);
	ares_library_cleanup();
	free(r->host_servers);
	free(r);
}

int resolver_set_servers(struct resolver *r, const char *csv)
{
	int rc;

	list_for_each_safe (q, &r->queries, struct resolver_query, link)
		resolver_abandon(q);
	ares_cancel(r->channel);
	rc = ares_set_servers_ports_csv(r->channel, csv ? csv : r->host_servers);
	resolver_rearm(r);
	return rc == ARES_SUCCESS ? 0 : -EINVAL;
}

/* --- questions ------------------------------------------------------------------------------ */

static void resolver_take_family(struct resolver_answer *a, const struct ares_addrinfo *ai,
				 int family)
{
	for (const struct ares_addrinfo_node *n = ai->nodes; n; n = n->ai_next) {
		if (n->ai_family != family || (size_t)n->ai_addrlen > sizeof(a->address[0]) ||
		    a->n == RESOLVER_ADDRESSES_MAX)
			continue;
		memcpy(&a->address[a->n++], n->ai_addr, n->ai_addrlen);
	}
}

static void resolver_answer_set(struct resolver_answer *a, int status,
				const struct ares_addrinfo *ai, int family)
{
	switch (status) {
	case ARES_SUCCESS:
		resolver_take_family(a, ai, family);
		a->rc = a->n ? 0 : -ENODATA;
		return;
	case ARES_ENODATA:
		a->rc = -ENODATA;
		return;
	case ARES_ENOTFOUND:
		a->rc = -ENOENT;
		return;
	case ARES_ETIMEOUT:
		a->rc = -ETIMEDOUT;
		a->why = "it did not answer in time";
		return;
	default:
		a->rc = status == ARES_ENOMEM ? -ENOMEM : -EIO;
		a->why = ares_strerror(status);
	}
}

/*
 * Of both kinds: every address there is; without one what went wrong counts more than that a kind
 * has none, and that more than that there is no such name, which is true of both or of none.
 */
static void resolver_join(struct resolver_answer *a, const struct resolver_answer *b)
{
	if (a->n == 0) {
		bool worse = (b->rc != -ENOENT && b->rc != -ENODATA) || a->rc == -ENOENT;

		if (b->n || (worse && (a->rc == -ENOENT || a->rc == -ENODATA)))
			*a = *b;
		return;
	}
	for (size_t i = 0; i < b->n && a->n < RESOLVER_ADDRESSES_MAX; i++)
		a->address[a->n++] = b->address[i];
}

static void resolver_on_kind(struct resolver_query *q, int status, struct ares_addrinfo *ai,
			     int family)
{
	resolver_answer_set(&q->kinds[family == AF_INET6], status, ai, family);
	if (ai)
		ares_freeaddrinfo(ai);
	if (--q->left)
		return;
	loop_timer_cancel(&q->deadline);
	list_del(&q->link);
	if (q->answered)
		*q->answered = true;
	if (!q->fn) {
		q->r->abandoned--;
	} else {
		resolver_join(&q->kinds[0], &q->kinds[1]);
		q->fn(q->arg, &q->kinds[0]);
	}
	free(q);
}

static void resolver_on_ipv4(void *arg, int status, int timeouts, struct ares_addrinfo *ai)
{
	(void)timeouts;
	resolver_on_kind(arg, status, ai, AF_INET);
}

static void resolver_on_ipv6(void *arg, int status, int timeouts, struct ares_addrinfo *ai)
{
	(void)timeouts;
	resolver_on_kind(arg, status, ai, AF_INET6);
}

static void resolver_on_deadline(struct loop_timer *t)
{
	struct resolver_query *q = t->arg;
	struct resolver_answer a = q->kinds[0];
	resolver_fn *fn = q->fn;
	void *arg = q->arg;

	resolver_join(&a, &q->kinds[1]);
	resolver_abandon(q); /* c-ares is not through with it, or it still waits */
	if (fn)
		fn(arg, &a);
}

/* Nobody is to be told. q may be gone. */
static void resolver_abandon(struct resolver_query *q)
{
	loop_timer_cancel(&q->deadline);
	if (!q->name) {
		q->r->abandoned += q->fn != NULL;
		q->fn = NULL;
		return;
	}
	list_del(&q->wait);
	list_del(&q->link);
	free(q->name);
	free(q);
}

/* --- pace ----------------------------------------------------------------------------------- */

static bool resolver_take_token(struct resolver *r)
{
	uint64_t now = io_now_ns(), more = (now - r->tokens_at_ns) / PACE_NS;

	if (more > RESOLVER_PER_S - r->tokens) {
		r->tokens = RESOLVER_PER_S;
		r->tokens_at_ns = now;
	} else {
		r->tokens += (unsigned int)more;
		r->tokens_at_ns += more * PACE_NS;
	}
	if (r->tokens == 0)
		return false;
	r->tokens--;
	return true;
}

static void resolver_send(struct resolver_query *q, const char *name)
{
	struct ares_addrinfo_hints hints = {
		.ai_family = AF_INET, .ai_socktype = SOCK_STREAM, .ai_flags = ARES_AI_NOSORT};
	struct resolver *r = q->r;

	q->left = 2;
	ares_getaddrinfo(r->channel, name, NULL, &hints, resolver_on_ipv4, q);
	hints.ai_family = AF_INET6;
	/* q may be gone behind this. */
	ares_getaddrinfo(r->channel, name, NULL, &hints, resolver_on_ipv6, q);
	resolver_rearm(r);
}

static void resolver_pace(struct loop_timer *t)
{
	struct resolver *r = t->arg;

	/* Whoever is told within may ask and give up. */
	while (!list_empty(&r->waiting) && resolver_take_token(r)) {
		struct resolver_query *q = list_entry(r->waiting.next, struct resolver_query, wait);
		char *name = take_ptr(q->name);

		list_del(&q->wait);
		resolver_send(q, name);
		free(name);
	}
	if (!list_empty(&r->waiting))
		loop_timer_set(r->loop, &r->pace, PACE_NS);
}

/* Behind those that wait already. */
static int resolver_enqueue(struct resolver_query *q, const char *name)
{
	q->name = strdup(name);
	if (!q->name)
		return -ENOMEM;
	list_add_tail(&q->r->waiting, &q->wait);
	if (!loop_timer_armed(&q->r->pace))
		loop_timer_set(q->r->loop, &q->r->pace, PACE_NS);
	return 0;
}

struct resolver_query *resolver_ask(struct resolver *r, const char *name, resolver_fn *fn,
				    void *arg)
{
	struct resolver_query *q = calloc(1, sizeof(*q));
	bool answered = false, now;

	if (q) {
		*q = (struct resolver_query){.r = r, .fn = fn, .arg = arg, .answered = &answered};
		for (size_t i = 0; i < ARRAY_SIZE(q->kinds); i++) {
			q->kinds[i].rc = -ETIMEDOUT;
			q->kinds[i].why = "it did not answer in time";
		}
		now = list_empty(&r->waiting) && resolver_take_token(r);
		if (!now && resolver_enqueue(q, name) < 0) {
			free(q);
			q = NULL;
		}
	}
	if (!q) {
		fn(arg, &(struct resolver_answer){.rc = -ENOMEM, .why = "there is no memory"});
		return NULL;
	}
	q->deadline = (struct loop_timer){.fn = resolver_on_deadline, .arg = q};
	list_add_tail(&r->queries, &q->link);
	loop_timer_set(r->loop, &q->deadline, RESOLVER_DEADLINE_S * 1000000000ull);
	if (now)
		resolver_send(q, name);
	if (answered)
		return NULL; /* q is gone */
	q->answered = NULL;
	return q;
}

void resolver_give_up(struct resolver_query *q)
{
	if (q)
		resolver_abandon(q);
}

size_t resolver_abandoned(const struct resolver *r)
{
	return r->abandoned;
}
