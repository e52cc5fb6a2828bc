/* SPDX-License-Identifier: Apache-2.0 */
/*
 * POST /v1/policy/test: what would become of a connection, and why. A proxy is
 * started for the question, with the policy that a sandbox has or would get, and
 * ended with the answer: nothing is written to the audit, and no sandbox notices.
 */
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/egress/egress.h"
#include "daemon/egress/grant.h"
#include "daemon/egress/policy.h"
#include "daemon/egress/proxy.h"
#include "daemon/fields.h"
#include "daemon/limits.h"
#include "daemon/reply.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct policy_test {
	struct request *r;
	struct proxy *proxy; /* NULL: it has ended, or was let go */
	struct grant *grant;
	struct held *place;         /* until the proxy has it, or NULL */
	char *host, *method, *path; /* the last two may be NULL */
	uint16_t port;
};

static void test_failed(struct policy_test *t, const char *why)
{
	char text[600];

	snprintf(text, sizeof(text), "the policy could not be tested: %s", why);
	reply_error(t->r, 502, "egress_failed", text, NULL, NULL);
}

/* What is left of it is a place, until the client has taken its answer. */
static void test_let_go(struct policy_test *t)
{
	if (t->proxy)
		proxy_drop(t->proxy);
	grant_unref(t->grant);
	t->proxy = NULL;
	t->grant = NULL;
}

static void on_policy(struct proxy *p, uint64_t serial, const char *error, json_t *ca)
{
	struct policy_test *t = p->owner;
	int rc;

	(void)serial;
	(void)ca;
	if (error) {
		test_let_go(t);
		test_failed(t, error);
		return;
	}
	rc = proxy_test(p, t->host, t->port, t->method, t->path);
	if (rc < 0) {
		test_let_go(t);
		test_failed(t, strerror(-rc));
	}
}

/* What the ceiling alone says: null when there is none. */
static json_t *test_ceiling(const struct policy_test *t)
{
	const struct egress_operator *o = &t->r->http->d->egress.op;
	char host[EGRESS_HOST_MAX + 1];
	struct egress_query q = {
		.host = host, .port = t->port, .method = t->method, .path = t->path};
	struct egress_answer a = {0};

	if (!o->ceiling_rules)
		return json_null();
	if (egress_host_normal(t->host, strlen(t->host), host, NULL) == 0)
		egress_rules_ask(o->ceiling_rules, &q, &a);
	return json_pack("{s:b, s:s?}", "allowed", a.match == EGRESS_MATCH, "rule",
			 a.match == EGRESS_MATCH ? a.rule : NULL);
}

static void on_test(struct proxy *p, json_t *answer)
{
	struct policy_test *t = p->owner;
	json_t *ceiling = test_ceiling(t);
	int rc = ceiling ? json_object_set_new(answer, "ceiling", ceiling) : -1;

	test_let_go(t);
	reply_json(t->r, 200, rc == 0 ? json_incref(answer) : NULL);
}

static void on_ended(struct proxy *p, const char *reason)
{
	struct policy_test *t = p->owner;

	t->proxy = NULL;
	test_let_go(t);
	test_failed(t, reason);
}

static const struct proxy_ops ops = {.policy = on_policy, .test = on_test, .ended = on_ended};

static void test_end(struct request *r)
{
	struct policy_test *t = r->state;

	test_let_go(t);
	held_give_place(&t->place);
	free(t->host);
	free(t->method);
	free(t->path);
	free(t);
}

static const struct request_ops test_ops = {.end = test_end};

/* What is to be tested: a list, the grant of a sandbox (nothing when it has none), or the default.
 */
static bool test_grant(struct policy_test *t, const json_t *body, struct sandbox **sb)
{
	const json_t *allow = json_object_get(body, "allow");
	struct egress_operator *o = &t->r->http->d->egress.op;
	struct grant_fault fault = {0};
	const char *id = NULL;
	int rc;

	if (!fields_string(t->r, body, "sandbox", &id, NULL))
		return false;
	if (id && allow && !json_is_null(allow)) {
		reply_invalid(t->r, "allow", "allow and sandbox exclude each other");
		return false;
	}
	*sb = id ? api_find_by_id(t->r, id, "sandbox") : NULL;
	if (id && !*sb)
		return false;
	t->grant = *sb ? grant_ref(egress_grant(*sb)) : NULL;
	if (t->grant)
		return true;
	if (*sb) {
		json_t *none = json_array();

		rc = grant_parse_list(&t->grant, o, none, &fault);
		json_decref(none);
	} else {
		rc = grant_parse_list(&t->grant, o,
				      allow && !json_is_null(allow) ? allow : o->allow, &fault);
	}
	if (rc == -EINVAL)
		reply_error(t->r, 400, "invalid_request", fault.err.msg, NULL, "allow");
	else if (rc < 0)
		reply_json(t->r, 500, NULL);
	return rc == 0 && api_egress_hold(t->r, &t->grant);
}

/* Copied, as the body does not stay. */
static bool test_fields(struct policy_test *t, const json_t *body)
{
	static const char *const known[] = {"host",  "port",    "method", "path",
					    "allow", "sandbox", NULL};
	const char *host = NULL, *method = NULL, *path = NULL;
	json_int_t port = 443;

	if (!fields_only(t->r, body, known) || !fields_string(t->r, body, "host", &host, NULL) ||
	    !fields_int(t->r, body, "port", 1, 65535, &port) ||
	    !fields_string(t->r, body, "method", &method, NULL) ||
	    !fields_string(t->r, body, "path", &path, NULL))
		return false;
	t->port = (uint16_t)port;
	if (!host || !*host || strlen(host) > 1024) {
		reply_invalid(t->r, "host", "host must be a name");
	} else if (method && (!*method || strlen(method) > 32)) {
		reply_invalid(t->r, "method", "method must be a word of at most 32 bytes");
	} else if (path && (*path != '/' || strlen(path) > 4096)) {
		reply_invalid(t->r, "path", "path must begin with / and have at most 4096 bytes");
	} else {
		t->host = strdup(host);
		t->method = method ? strdup(method) : NULL;
		t->path = path ? strdup(path) : NULL;
		if (t->host && !t->method == !method && !t->path == !path)
			return true;
		reply_json(t->r, 500, NULL);
	}
	return false;
}

/* One of the places, of which an owner has some. False: answered. */
static bool test_place(struct policy_test *t)
{
	struct daemon *d = t->r->http->d;
	struct held *h = owners_part(&d->owners, d->owners.tests, t->r->owner, &d->tests);

	if (d->stopping)
		reply_error(t->r, 503, "stopping", "the daemon is stopping", NULL, NULL);
	else if (held_take(h, 1) < 0)
		reply_error(t->r, 429, "too_many_requests", "too many policies are being tested",
			    NULL, NULL);
	else
		t->place = h;
	return t->place != NULL;
}

static void test_start(struct policy_test *t, const struct sandbox *sb)
{
	struct egress_host *h = &t->r->http->d->egress;
	const char *id = sb ? sb->id : "test";
	struct err err = {0};
	_cleanup_fd int fd = policy_make(&h->op, id, t->grant, sb ? egress_ca(sb) : NULL, &err);
	int64_t rc = fd;

	if (fd >= 0)
		t->proxy = proxy_start(h, id, &ops, t, &err);
	if (t->proxy) {
		/* Whoever leaves does not have it for another one before the process is gone. */
		t->proxy->place = t->place;
		t->place = NULL;
		rc = proxy_policy(t->proxy, fd);
		if (rc < 0)
			err_set(&err, (int)-rc, "the proxy does not take it");
	}
	if (t->proxy && rc >= 0)
		return;
	test_let_go(t);
	test_failed(t, err.msg);
}

void api_policy_test(struct request *r)
{
	json_t *body = fields_parse(r, false);
	struct policy_test *t = body ? calloc(1, sizeof(*t)) : NULL;
	struct sandbox *sb = NULL;
	bool go;

	if (!t) {
		if (body)
			reply_json(r, 500, NULL);
		json_decref(body);
		return;
	}
	t->r = r;
	r->ops = &test_ops;
	r->state = t;
	/* An allowlist may be long: it is looked at when there is a place for who asks. */
	go = test_fields(t, body) && api_egress_usable(r) && test_place(t) &&
	     test_grant(t, body, &sb);
	api_egress_forget(r, body);
	if (go)
		test_start(t, sb);
	else
		held_give_place(&t->place);
}
