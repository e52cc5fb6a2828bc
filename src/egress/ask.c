/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A decision, step by step: policy, form of the name, rules, ceiling, limits;
 * only then the resolver, and then each of its addresses. A question that waits
 * for the resolver is in e->askings. A new policy makes it begin again: nothing
 * is ever allowed by a policy that is not there any more.
 */
#define _GNU_SOURCE
#include "egress/egress_impl.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

typedef void asked_fn(void *arg, json_t *reply);

struct egress_asking {
	struct list link;
	struct egress *e;
	struct question question;
	egress_decided_fn *fn;
	asked_fn *test_fn; /* a test, which ends in a JSON reply; fn is NULL then */
	void *arg;
	struct resolver_query *query;
	struct judgement j;
	bool *answered; /* of the call that asks, while it lasts */
};

/* --- answers -------------------------------------------------------------------------------- */

static void asking_free(struct egress_asking *a)
{
	if (a->answered)
		*a->answered = true;
	list_del(&a->link);
	a->e->askings_n--;
	question_free(&a->question);
	free(a);
}

/* The end of a question; whoever is told may ask the next one. */
static void asking_tell(struct egress_asking *a, const struct egress_verdict *v)
{
	egress_decided_fn *fn = a->fn;
	void *arg = a->arg;

	asking_free(a);
	fn(arg, v);
}

/* The reply of a test; addresses is taken. */
static void asking_reply(struct egress_asking *a, json_t *addresses)
{
	const struct judgement *j = &a->j;
	char hint[400] = "";
	bool allow = j->reason == EGRESS_R_NONE;

	if (!allow)
		text_hint(a->e, j->reason, &a->question.q, j, hint, sizeof(hint));
	else if (a->question.q.proto == EGRESS_GATEWAY && policy_headers(a->e->policy, j->host))
		snprintf(hint, sizeof(hint), "As plain HTTP it would be refused (%s).",
			 egress_reason_text(EGRESS_R_PLAIN_HTTP));
	a->test_fn(a->arg, json_pack("{s:s, s:s?, s:s?, s:s, s:s, s:o}", "verdict",
				     allow ? "allow" : "deny", "reason",
				     allow ? NULL : egress_reason_text(j->reason), "rule",
				     j->rule[0] ? j->rule : NULL, "detail", j->detail, "hint", hint,
				     "addresses", addresses ? addresses : json_array()));
	asking_free(a);
}

static void asking_deny(struct egress_asking *a, const struct sockaddr *sa)
{
	struct egress_verdict v = {.reason = a->j.reason};
	struct egress *e = a->e;

	if (a->test_fn) {
		asking_reply(a, NULL);
		return;
	}
	snprintf(v.host, sizeof(v.host), "%s", a->j.host);
	snprintf(v.detail, sizeof(v.detail), "%s", a->j.detail);
	text_hint(e, v.reason, &a->question.q, &a->j, v.hint, sizeof(v.hint));
	snprintf(a->question.host, sizeof(a->question.host), "%s", a->j.host);
	audit_decision(e, &a->question, a->j.rule, sa, v.reason, v.detail, v.hint);
	asking_tell(a, &v);
}

static void asking_refuse(struct egress_asking *a, enum egress_reason why, const char *detail,
			  const struct sockaddr *sa)
{
	a->j.reason = why;
	snprintf(a->j.detail, sizeof(a->j.detail), "%s", detail);
	asking_deny(a, sa);
}

static void asking_allow(struct egress_asking *a, const union resolver_address *addr)
{
	socklen_t len = addr->sa.sa_family == AF_INET ? sizeof(struct sockaddr_in)
						      : sizeof(struct sockaddr_in6);
	struct egress_verdict v = {
		.allow = true, .addr_len = len, .tls = a->j.tls, .intercept = a->j.intercept};
	enum egress_proto proto = a->question.q.proto;
	struct egress *e = a->e;

	memcpy(&v.addr, addr, len);
	snprintf(v.host, sizeof(v.host), "%s", a->j.host);
	snprintf(v.detail, sizeof(v.detail), "%s", a->j.detail);
	snprintf(a->question.host, sizeof(a->question.host), "%s", a->j.host);
	if (proto != EGRESS_CONNECT && proto != EGRESS_SOCKS)
		v.inject = policy_headers(e->policy, a->j.host);
	/* The record first: it has the question, which moves into the grant. */
	audit_decision(e, &a->question, a->j.rule, &addr->sa, EGRESS_R_NONE, v.detail, "");
	v.grant = grant_new(e, &a->question, &a->j, &addr->sa, len, v.inject);
	if (!v.grant) {
		v = (struct egress_verdict){.reason = EGRESS_R_CONNECTIONS, .detail = "no memory"};
		snprintf(v.host, sizeof(v.host), "%s", a->j.host);
	}
	asking_tell(a, &v);
}

/* --- addresses ------------------------------------------------------------------------------ */

static void address_set_port(union resolver_address *a, uint16_t port)
{
	if (a->sa.sa_family == AF_INET)
		((struct sockaddr_in *)(void *)&a->storage)->sin_port = htons(port);
	else
		((struct sockaddr_in6 *)(void *)&a->storage)->sin6_port = htons(port);
}

/* Where it leads, and whether that is this host and no range of the operator says that it may. */
static bool own_refused(const struct egress *e, const struct sockaddr *sa, enum own_way *way,
			char why[EGRESS_WHY_MAX])
{
	const struct egress_ranges *ranges = e->policy->ranges;
	bool named = egress_ranges_have(e->policy->own, sa);

	*way = named ? OWN_ITSELF : own_way(e->own, sa);
	if (*way != OWN_ITSELF && *way != OWN_UNKNOWN)
		return false;
	/* What is said to be ours is not opened by a wide range that was meant for something else.
	 */
	if (named ? egress_ranges_name(ranges, sa) : egress_ranges_have(ranges, sa))
		return false;
	snprintf(why, EGRESS_WHY_MAX, "%s",
		 *way == OWN_ITSELF
			 ? "an address of this host itself"
			 : "one that cannot be told from those of this host at the moment");
	return true;
}

int ask_check_address(const struct egress *e, const struct sockaddr *sa, enum own_way *way,
		      char why[EGRESS_WHY_MAX])
{
	int rc = egress_addr_check(sa, e->policy->ranges, why);
	struct sockaddr_in inner;
	enum own_way inner_way;

	if (rc < 0) {
		*way = OWN_NO_WAY;
		return rc;
	}
	if (own_refused(e, sa, way, why))
		return -EACCES;
	/* A translator on the way makes that of it. */
	if (egress_addr_carried(sa, e->policy->ranges, &inner) &&
	    own_refused(e, (const struct sockaddr *)&inner, &inner_way, why))
		return -EACCES;
	return 0;
}

/*
 * The first address that is allowed and has a route, else the first that is allowed: a host
 * without IPv6 gets addresses of it all the same.
 */
static const union resolver_address *asking_choose(struct egress_asking *a,
						   const struct resolver_answer *r)
{
	const union resolver_address *first = NULL;
	char why[EGRESS_WHY_MAX];
	enum own_way way;

	for (size_t i = 0; i < r->n; i++) {
		if (ask_check_address(a->e, &r->address[i].sa, &way, why) < 0)
			continue;
		if (way != OWN_NO_WAY)
			return &r->address[i];
		if (!first)
			first = &r->address[i];
	}
	return first;
}

static json_t *asking_addresses(struct egress_asking *a, const struct resolver_answer *r)
{
	json_t *list = json_array();

	for (size_t i = 0; i < r->n; i++) {
		char why[EGRESS_WHY_MAX], text[INET6_ADDRSTRLEN];
		enum own_way way;
		int rc = ask_check_address(a->e, &r->address[i].sa, &way, why);

		audit_address(&r->address[i].sa, text, sizeof(text));
		json_array_append_new(list, json_pack("{s:s, s:b, s:s}", "address", text, "allowed",
						      rc == 0, "why", why));
	}
	return list;
}

static void asking_no_address(struct egress_asking *a, const struct resolver_answer *r)
{
	char detail[400];

	if (r->rc == -ENOENT || r->rc == -ENODATA) {
		snprintf(detail, sizeof(detail), "%s %s", a->j.host,
			 r->rc == -ENOENT ? "does not exist" : "has no address");
		asking_refuse(a, EGRESS_R_NO_NAME, detail, NULL);
		return;
	}
	snprintf(detail, sizeof(detail), "the resolver of this host did not resolve %s: %.100s",
		 a->j.host, r->why ? r->why : "it failed");
	asking_refuse(a, EGRESS_R_RESOLVER, detail, NULL);
}

static void asking_on_answer(void *arg, const struct resolver_answer *r)
{
	struct egress_asking *a = arg;
	struct resolver_answer with_port = *r;
	const union resolver_address *chosen;
	char why[EGRESS_WHY_MAX], detail[400];
	enum own_way way;

	a->query = NULL;
	if (r->rc < 0) {
		asking_no_address(a, r);
		return;
	}
	for (size_t i = 0; i < r->n; i++)
		address_set_port(&with_port.address[i], a->question.q.port);
	chosen = asking_choose(a, &with_port);
	if (!chosen) {
		/* Which address it is tells the record; the guest learns its kind. */
		if (ask_check_address(a->e, &r->address[0].sa, &way, why) == 0)
			snprintf(why, sizeof(why), "none");
		snprintf(detail, sizeof(detail),
			 "%s resolves only to addresses that may not be reached (%.80s)", a->j.host,
			 why);
		if (!a->test_fn) {
			asking_refuse(a, EGRESS_R_ADDRESS, detail, &r->address[0].sa);
			return;
		}
		a->j.reason = EGRESS_R_ADDRESS;
		snprintf(a->j.detail, sizeof(a->j.detail), "%s", detail);
	}
	if (a->test_fn)
		asking_reply(a, asking_addresses(a, &with_port));
	else
		asking_allow(a, chosen);
}

/* Addresses of the policy's "resolve", which the policy has checked. */
static void asking_resolve_by_policy(struct egress_asking *a, const json_t *list)
{
	struct resolver_answer r = {0};
	json_t *one;
	size_t i;

	json_array_foreach(list, i, one)
	{
		union resolver_address *to = &r.address[r.n];
		struct sockaddr_in *v4 = (struct sockaddr_in *)(void *)&to->storage;
		struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)(void *)&to->storage;

		if (inet_pton(AF_INET, json_string_value(one), &v4->sin_addr) == 1)
			to->sa.sa_family = AF_INET;
		else if (inet_pton(AF_INET6, json_string_value(one), &v6->sin6_addr) == 1)
			to->sa.sa_family = AF_INET6;
		else
			continue;
		r.n++;
	}
	r.rc = r.n ? 0 : -ENODATA;
	asking_on_answer(a, &r);
}

/* --- questions ------------------------------------------------------------------------------ */

static void asking_start(struct egress_asking *a)
{
	struct egress *e = a->e;
	char detail[400];
	const json_t *list;

	judge_question(e, &a->question.q, &a->j);
	if (a->j.reason == EGRESS_R_NONE && !a->test_fn) {
		enum egress_reason limit;

		e->askings_n--; /* itself */
		limit = grant_limit(e, detail, sizeof(detail));
		e->askings_n++;
		if (limit != EGRESS_R_NONE) {
			asking_refuse(a, limit, detail, NULL);
			return;
		}
	}
	if (a->j.reason != EGRESS_R_NONE) {
		asking_deny(a, NULL);
		return;
	}
	list = json_object_get(e->policy->resolve, a->j.host);
	if (list) {
		asking_resolve_by_policy(a, list);
		return;
	}
	{
		bool gone = false, *outer = a->answered;
		struct resolver_query *q;

		/* The answer may come within the call, and a is gone then. */
		a->answered = &gone;
		q = resolver_ask(e->resolver, a->j.host, asking_on_answer, a);
		if (gone) {
			if (outer)
				*outer = true;
			return;
		}
		a->answered = outer;
		a->query = q;
	}
}

static struct egress_asking *asking_new(struct egress *e, const struct egress_question *q)
{
	struct egress_asking *a = calloc(1, sizeof(*a));
	const char *exec = audit_stream_exec(e, q->stream);

	if (!a || question_copy(&a->question, q) < 0) {
		free(a);
		return NULL;
	}
	a->question.exec = exec ? strdup(exec) : NULL;
	if (exec && !a->question.exec) {
		question_free(&a->question);
		free(a);
		return NULL;
	}
	a->e = e;
	a->question.id = ++e->last_id;
	list_add_tail(&e->askings, &a->link);
	e->askings_n++;
	return a;
}

struct egress_asking *egress_ask(struct egress *e, const struct egress_question *q,
				 egress_decided_fn *fn, void *arg)
{
	struct egress_asking *a = asking_new(e, q);
	bool answered = false;

	if (!a) {
		struct egress_verdict v;

		egress_denied(e, q, EGRESS_R_CONNECTIONS, "there is no memory", NULL, &v);
		fn(arg, &v);
		return NULL;
	}
	a->fn = fn;
	a->arg = arg;
	a->answered = &answered;
	asking_start(a);
	if (answered)
		return NULL;
	a->answered = NULL;
	return a;
}

void egress_test(struct egress *e, const struct egress_question *q, asked_fn *fn, void *arg)
{
	struct egress_asking *a = asking_new(e, q);

	if (!a) {
		fn(arg, NULL);
		return;
	}
	e->last_id--; /* no request */
	a->test_fn = fn;
	a->arg = arg;
	asking_start(a);
}

void egress_give_up(struct egress_asking *a)
{
	if (!a)
		return;
	resolver_give_up(a->query);
	asking_free(a);
}

void ask_pause_all(struct egress *e)
{
	list_for_each (a, &e->askings, struct egress_asking, link) {
		resolver_give_up(a->query);
		a->query = NULL;
	}
}

void ask_restart_all(struct egress *e)
{
	struct list old = LIST_INIT(old);

	while (!list_empty(&e->askings)) {
		struct list *n = e->askings.next;

		list_del(n);
		list_add_tail(&old, n);
	}
	while (!list_empty(&old)) {
		struct egress_asking *a = list_entry(old.next, struct egress_asking, link);

		list_del(&a->link);
		list_add_tail(&e->askings, &a->link);
		asking_start(a);
	}
}

void ask_give_up_all(struct egress *e)
{
	while (!list_empty(&e->askings))
		egress_give_up(list_entry(e->askings.next, struct egress_asking, link));
}

void egress_denied(struct egress *e, const struct egress_question *q, enum egress_reason why,
		   const char *detail, const char *hint, struct egress_verdict *out)
{
	struct question kept = {.q = *q, .id = ++e->last_id};
	struct judgement j = {0};

	*out = (struct egress_verdict){.reason = why};
	if (egress_host_normal(q->host, q->host_len, j.host, NULL) < 0)
		j.host[0] = '\0';
	snprintf(kept.host, sizeof(kept.host), "%s", j.host);
	snprintf(out->host, sizeof(out->host), "%s", j.host);
	snprintf(out->detail, sizeof(out->detail), "%s", detail);
	if (hint)
		snprintf(out->hint, sizeof(out->hint), "%s", hint);
	else
		text_hint(e, why, q, &j, out->hint, sizeof(out->hint));
	audit_decision(e, &kept, NULL, NULL, why, detail, out->hint);
}
