/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What was allowed, until it is over: counted, limited in rate and time, and
 * cut by a new policy. Invariants: a grant is in e->grants from the verdict to
 * egress_done(); one that is marked as cut lets no further byte pass, and is
 * told so once, from the loop.
 *
 * Rate: one bucket for the sandbox, filled with bytes_per_s up to a tenth of a
 * second's worth, BUCKET_MIN at least. A reader asks what may pass, reads no more than that, and
 * counts what it read; one that finds nothing waits in e->thirsty.
 */
#define _GNU_SOURCE
#include "egress/egress_impl.h"

#include "egress/plane.h"
#include "lib/io.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>

#define NS_PER_S   1000000000ull
#define BUCKET_MIN 4096
#define REFILL_NS  (NS_PER_S / 50)
#define TELL_BYTES (16u << 20) /* that the daemon may not know of */

/* --- cuts ----------------------------------------------------------------------------------- */

static void grant_mark(struct egress_grant *g, enum egress_reason why)
{
	if (g->cut)
		return;
	g->cut = true;
	g->cut_why = why;
	list_del(&g->thirsty);
}

static void grant_arm(struct egress_grant *g, uint64_t now);

static struct egress_grant *grant_untold(struct egress *e)
{
	list_for_each (g, &e->grants, struct egress_grant, link)
		if (g->cut && !g->told && g->cut_fn)
			return g;
	return NULL;
}

/* Whoever is told may end its grant, and others: the list is looked through anew each time. */
static void grant_tell(struct egress *e)
{
	struct egress_grant *g;

	while ((g = grant_untold(e)) != NULL) {
		g->told = true;
		g->cut_fn(g->cut_arg, g->cut_why);
	}
}

static void grant_on_cutter(struct loop_timer *t)
{
	grant_tell(t->arg);
}

void grant_cut_all(struct egress *e, enum egress_reason why)
{
	list_for_each (g, &e->grants, struct egress_grant, link)
		grant_mark(g, why);
	grant_tell(e);
}

bool egress_injection_holds(const struct egress_grant *g)
{
	const struct egress *e = g->e;

	return !g->inject ||
	       (e->policy && json_equal(policy_headers(e->policy, g->question.host), g->inject));
}

void egress_injected(struct egress_grant *g, bool sent)
{
	g->injected = sent;
}

/*
 * Whether its address may be reached. One that cannot be told from this host's own at the moment
 * was told from them when it was opened, unless a range made that needless.
 */
static bool grant_address_holds(const struct egress_grant *g)
{
	const struct sockaddr *sa = (const struct sockaddr *)(const void *)&g->addr;
	char why[EGRESS_WHY_MAX];
	enum own_way way;

	return ask_check_address(g->e, sa, &way, why) == 0 || (way == OWN_UNKNOWN && !g->by_range);
}

void grant_review_all(struct egress *e)
{
	list_for_each (g, &e->grants, struct egress_grant, link) {
		struct judgement j;

		judge_question(e, &g->question.q, &j);
		if (j.reason != EGRESS_R_NONE || j.intercept != g->intercept ||
		    (j.tls && !g->tls) || (!g->injected && !egress_injection_holds(g)) ||
		    !grant_address_holds(g))
			grant_mark(g, e->policy ? EGRESS_R_POLICY_CHANGED : EGRESS_R_POLICY);
		else
			grant_arm(g, io_now_ns()); /* its times may have changed */
	}
	grant_tell(e);
}

void egress_on_cut(struct egress_grant *g, void (*fn)(void *arg, enum egress_reason why), void *arg)
{
	g->cut_fn = fn;
	g->cut_arg = arg;
	if (g->cut && !g->told) {
		g->e->cutter.fn = grant_on_cutter;
		loop_timer_set(g->e->loop, &g->e->cutter, 0);
	}
}

/* --- time ----------------------------------------------------------------------------------- */

static void grant_arm(struct egress_grant *g, uint64_t now)
{
	const struct policy_limits *l = &g->e->policy->limits;
	uint64_t idle = g->active_ns + l->idle_s * NS_PER_S,
		 end = g->began_ns + l->total_s * NS_PER_S;
	uint64_t at = idle < end ? idle : end;

	loop_timer_set(g->e->loop, &g->timer, at > now ? at - now : 0);
}

/* The timer is not moved with every byte: it looks, when it fires, whether it is too early. */
static void grant_on_timer(struct loop_timer *t)
{
	struct egress_grant *g = t->arg;
	uint64_t now = io_now_ns();

	if (!g->e->policy)
		return; /* it was cut */
	if (now >= g->began_ns + g->e->policy->limits.total_s * NS_PER_S)
		grant_mark(g, EGRESS_R_TOTAL);
	else if (now >= g->active_ns + g->e->policy->limits.idle_s * NS_PER_S)
		grant_mark(g, EGRESS_R_IDLE);
	else
		grant_arm(g, now);
	grant_tell(g->e);
}

/* --- bytes ---------------------------------------------------------------------------------- */

static int64_t grant_bucket(const struct egress *e)
{
	int64_t tenth = (int64_t)(e->policy->limits.bytes_per_s / 10);

	return tenth < BUCKET_MIN ? BUCKET_MIN : tenth;
}

/*
 * Crumbs are not handed out: each would be a system call. But nobody waits longer than a second for
 * what is no crumb.
 */
static int64_t grant_crumb(const struct egress *e)
{
	uint64_t rate = e->policy->limits.bytes_per_s;
	int64_t quarter = grant_bucket(e) / 4;

	return rate < (uint64_t)quarter ? (int64_t)rate : quarter;
}

static void grant_refill(struct egress *e)
{
	uint64_t now = io_now_ns(), rate = e->policy->limits.bytes_per_s;
	unsigned __int128 made = (unsigned __int128)rate * (now - e->tokens_at_ns) / NS_PER_S;
	int64_t bucket = grant_bucket(e), lacks = bucket - e->tokens;

	if (lacks <= 0 || made >= (uint64_t)lacks) {
		e->tokens = bucket;
		e->tokens_at_ns = now;
		return;
	}
	/* The time that has not made a byte yet is left for the next call. */
	e->tokens += (int64_t)made;
	e->tokens_at_ns += (uint64_t)(made * NS_PER_S / rate);
}

static void grant_on_refill(struct loop_timer *t)
{
	struct egress *e = t->arg;
	struct list woken = LIST_INIT(woken);

	if (e->policy && e->policy->limits.bytes_per_s) {
		grant_refill(e);
		if (e->tokens < grant_crumb(e)) {
			loop_timer_set(e->loop, t, REFILL_NS);
			return;
		}
	}
	while (!list_empty(&e->thirsty)) {
		struct list *n = e->thirsty.next;

		list_del(n);
		list_add_tail(&woken, n);
	}
	while (!list_empty(&woken)) {
		struct egress_grant *g = list_entry(woken.next, struct egress_grant, thirsty);

		list_del(&g->thirsty);
		if (g->room_fn)
			g->room_fn(g->room_arg);
	}
}

static size_t grant_room(struct egress_grant *g)
{
	struct egress *e = g->e;
	int64_t crumb;

	if (g->cut || !e->policy)
		return 0;
	if (!e->policy->limits.bytes_per_s)
		return SIZE_MAX;
	crumb = grant_crumb(e);
	if (e->tokens < crumb)
		grant_refill(e);
	if (e->tokens >= crumb)
		return (size_t)e->tokens;
	if (list_empty(&g->thirsty))
		list_add_tail(&e->thirsty, &g->thirsty);
	if (!loop_timer_armed(&e->refill)) {
		e->refill.fn = grant_on_refill;
		loop_timer_set(e->loop, &e->refill, REFILL_NS);
	}
	return 0;
}

/* Whether the sandbox has used up its bytes. */
static bool grant_all_used(const struct egress *e)
{
	uint64_t limit = e->policy ? e->policy->limits.bytes : 0;

	return limit && (e->bytes_before >= limit || e->bytes >= limit - e->bytes_before);
}

/* The sum is the sandbox's: it must not be lost with this process. */
static void grant_check_bytes(struct egress *e)
{
	uint64_t step = e->policy ? e->policy->limits.bytes / 16 : 0;

	if (step > TELL_BYTES)
		step = TELL_BYTES;
	if (e->policy && e->policy->limits.bytes && e->bytes - e->bytes_told > step)
		audit_used(e);
	if (!grant_all_used(e))
		return;
	list_for_each (one, &e->grants, struct egress_grant, link)
		grant_mark(one, EGRESS_R_BYTES);
	e->cutter.fn = grant_on_cutter;
	loop_timer_set(e->loop, &e->cutter, 0);
}

size_t egress_count(struct egress_grant *g, size_t up, size_t down)
{
	struct egress *e = g->e;

	if (up || down) {
		g->up += up;
		g->down += down;
		g->active_ns = io_now_ns();
		e->bytes += up + down;
		e->tokens -= (int64_t)(up + down);
	}
	grant_check_bytes(e);
	return grant_room(g);
}

void egress_alive(struct egress_grant *g)
{
	g->active_ns = io_now_ns();
}

void grant_used_before(struct egress *e, uint64_t bytes)
{
	e->bytes_before = bytes;
	grant_check_bytes(e);
}

void egress_on_room(struct egress_grant *g, void (*fn)(void *arg), void *arg)
{
	g->room_fn = fn;
	g->room_arg = arg;
}

/* --- beginning and end ---------------------------------------------------------------------- */

enum egress_reason grant_limit(const struct egress *e, char *detail, size_t len)
{
	const struct policy_limits *l = &e->policy->limits;

	if (grant_all_used(e)) {
		snprintf(detail, len,
			 "all %llu bytes that this sandbox may send and receive are used",
			 (unsigned long long)l->bytes);
		return EGRESS_R_BYTES;
	}
	/* A name that was asked for is asked for to the end, also when the guest has left. */
	if (e->grants_n + e->askings_n + resolver_abandoned(e->resolver) >= l->connections) {
		snprintf(detail, len, "this sandbox has %llu connections, as many as it may have",
			 (unsigned long long)l->connections);
		return EGRESS_R_CONNECTIONS;
	}
	return EGRESS_R_NONE;
}

struct egress_grant *grant_new(struct egress *e, struct question *q, const struct judgement *j,
			       const struct sockaddr *sa, socklen_t len, const json_t *inject)
{
	struct egress_grant *g = calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	g->e = e;
	g->question = *q;
	*q = (struct question){0};
	g->tls = j->tls;
	g->intercept = j->intercept;
	g->inject = json_incref((json_t *)(uintptr_t)inject);
	memcpy(&g->addr, sa, len);
	g->by_range = egress_ranges_have(e->policy->ranges, sa);
	snprintf(g->rule, sizeof(g->rule), "%s", j->rule);
	g->began_ns = g->active_ns = io_now_ns();
	g->timer = (struct loop_timer){.fn = grant_on_timer, .arg = g};
	list_init(&g->thirsty);
	list_add_tail(&e->grants, &g->link);
	e->grants_n++;
	grant_arm(g, g->began_ns);
	return g;
}

void egress_done(struct egress_grant *g, enum egress_reason why)
{
	struct egress *e = g->e;

	list_del(&g->link);
	list_del(&g->thirsty);
	e->grants_n--;
	loop_timer_cancel(&g->timer);
	audit_end(e, g, why);
	question_free(&g->question);
	json_decref(g->inject);
	free(g);
}

static bool same_address(const struct egress_verdict *v, const struct sockaddr *sa)
{
	const struct sockaddr_in *in = (const void *)sa, *vin = (const void *)&v->addr;
	const struct sockaddr_in6 *in6 = (const void *)sa, *vin6 = (const void *)&v->addr;

	if (sa->sa_family != v->addr.ss_family)
		return false;
	if (sa->sa_family == AF_INET)
		return in->sin_port == vin->sin_port && in->sin_addr.s_addr == vin->sin_addr.s_addr;
	return sa->sa_family == AF_INET6 && in6->sin6_port == vin6->sin6_port &&
	       in6->sin6_scope_id == vin6->sin6_scope_id &&
	       memcmp(&in6->sin6_addr, &vin6->sin6_addr, sizeof(in6->sin6_addr)) == 0;
}

int egress_dial_socket(struct egress *e, const struct egress_verdict *v, const struct sockaddr *sa)
{
	const int one = 1;
	int fd;

	(void)e;
	if (!v->allow || !same_address(v, sa))
		return -EACCES;
	fd = socket(v->addr.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	return fd;
}

int egress_dial(struct egress *e, const struct egress_verdict *v)
{
	const struct sockaddr *sa = (const struct sockaddr *)(const void *)&v->addr;
	_cleanup_fd int fd = -1;

	http_plane_spare(e->plane, egress_spare_connections(e));
	fd = egress_dial_socket(e, v, sa);
	if (fd < 0)
		return fd;
	if (connect(fd, sa, v->addr_len) < 0 && errno != EINPROGRESS)
		return -errno;
	return take_fd(&fd);
}
