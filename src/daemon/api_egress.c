/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Egress of a sandbox: looking at it, replacing it, its log; and the member "egress"
 * that other requests have.
 */
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/egress/egress.h"
#include "daemon/egress/grant.h"
#include "daemon/egress/log.h"
#include "daemon/fields.h"
#include "daemon/intake.h"
#include "daemon/query.h"
#include "daemon/reply.h"
#include "lib/cleanup.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

bool api_egress_usable(struct request *r)
{
	const struct egress_operator *o = &r->http->d->egress.op;
	char text[sizeof(o->why) + 64];

	if (o->disabled) {
		reply_error(r, 403, "egress_disabled",
			    "the operator of this host has switched egress off", NULL, NULL);
		return false;
	}
	if (o->usable)
		return true;
	snprintf(text, sizeof(text), "there is no egress on this host: %s", o->why);
	reply_error(r, 503, "egress_unavailable", text,
		    "sandboxes without egress work; the operator of the host can put it right",
		    NULL);
	return false;
}

bool api_egress_grant(struct request *r, const json_t *value, struct grant **out)
{
	struct grant_fault fault = {0};
	int rc;

	*out = NULL;
	if (!value || json_is_null(value) || json_is_false(value))
		return true;
	if (!api_egress_usable(r))
		return false;
	rc = grant_parse(out, &r->http->d->egress.op, value, &fault);
	if (rc == 0)
		return api_egress_hold(r, out);
	if (rc == -ENOMEM)
		reply_json(r, 500, NULL);
	else
		reply_error(r, 400, "invalid_request", fault.err.msg, NULL, fault.field);
	return false;
}

bool api_egress_hold(struct request *r, struct grant **g)
{
	struct held *h = owners_grants(&r->http->d->owners, r->owner);
	int rc = grant_hold(*g, h);
	char text[160];

	if (rc == 0)
		return true;
	grant_unref(*g);
	*g = NULL;
	if (rc != -EDQUOT) {
		reply_overloaded(r);
		return false;
	}
	snprintf(text, sizeof(text),
		 "the allowlists of your sandboxes take the %zu MiB that podflared has for them",
		 h->max >> 20);
	reply_error(r, 503, "overloaded", text,
		    "end some of them, or give them shorter lists; the operator can set "
		    "PODFLARE_REQUESTS_MIB",
		    "egress");
	return false;
}

void api_egress_forget(struct request *r, json_t *body)
{
	json_decref(body);
	intake_drop_body(r);
}

void api_egress_get(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);

	if (sb)
		reply_json(r, 200, egress_json(sb));
}

/* --- replacing it ------------------------------------------------------------------------ */

/* Answered when the proxy holds to the new grant, and the guest's agent knows of it. */
struct replace {
	struct request *r;
	struct sandbox *sb;
	struct sandbox_user user;
	struct egress_change change;
};

static void replace_over(struct replace *p)
{
	sandbox_drop_user(&p->user);
	egress_drop_change(&p->change);
}

static void replace_done(struct egress_change *c, const char *failure)
{
	struct replace *p = list_entry(c, struct replace, change);
	char text[800];

	replace_over(p);
	if (!failure) {
		reply_json(p->r, 200, egress_json(p->sb));
		return;
	}
	snprintf(text, sizeof(text), "the new grant holds, but the guest does not know of it: %s",
		 failure);
	reply_error(p->r, 502, "agent_error", text, "set it once more", NULL);
}

static void replace_ended(struct sandbox_user *u, const char *reason)
{
	struct replace *p = u->arg;

	replace_over(p);
	reply_ended(p->r, reason);
}

/* A client that leaves has replaced it all the same. */
static void replace_end(struct request *r)
{
	replace_over(r->state);
	free(r->state);
}

static const struct request_ops replace_ops = {.end = replace_end};

static void replace(struct request *r, struct sandbox *sb, struct grant *g)
{
	struct replace *p = calloc(1, sizeof(*p));

	if (!p) {
		reply_json(r, 500, NULL);
		return;
	}
	p->r = r;
	p->sb = sb;
	p->change.done = replace_done;
	list_init(&p->change.link);
	r->ops = &replace_ops;
	r->state = p;
	sandbox_add_user(sb, &p->user, replace_ended, p);
	if (egress_change(sb, g, &p->change) < 0) {
		replace_over(p);
		reply_json(r, 500, NULL);
	}
}

void api_egress_put(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);
	const char *text = (const char *)buf_data(&r->body);
	struct grant *g = NULL;
	json_error_t e;
	json_t *body;

	if (!sb)
		return;
	if (!fields_few(r)) {
		api_egress_forget(r, NULL);
		return;
	}
	body = json_safe_loadb(text ? text : "", buf_len(&r->body),
			       JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY, &e);
	if (!body && json_safe_lacked()) {
		reply_json(r, 500, NULL);
	} else if (!body || json_is_null(body)) {
		/* Without the parser's words: they could be a piece of a secret. */
		reply_invalid(r, "body",
			      body ? "the body must be an object, true or false"
				   : "the body is not valid JSON: line %d, column %d",
			      e.line, e.column);
	} else if (api_egress_grant(r, body, &g)) {
		replace(r, sb, g);
		grant_unref(g);
	}
	api_egress_forget(r, body);
}

/* --- log --------------------------------------------------------------------------------- */

/* A number from 1 to EGRESS_LOG_MAX. False: answered. */
static bool log_limit(struct request *r, size_t *out)
{
	_cleanup_free char *text = NULL;
	int rc = query_get(r->query, "limit", &text);

	*out = EGRESS_LOG_MAX;
	if (rc == -ENOENT)
		return true;
	if (rc == -ENOMEM) {
		reply_json(r, 500, NULL);
		return false;
	}
	if (rc == 0 && strlen(text) <= 4 && strspn(text, "0123456789") == strlen(text)) {
		*out = strtoul(text, NULL, 10);
		if (*out >= 1 && *out <= EGRESS_LOG_MAX)
			return true;
	}
	reply_invalid(r, "limit", "limit must be a number from 1 to %u", EGRESS_LOG_MAX);
	return false;
}

void api_egress_log(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);
	_cleanup_free char *text = NULL;
	size_t limit, len;

	if (!sb || !log_limit(r, &limit))
		return;
	egress_drain(sb);
	text = egress_lines(sb, limit, &len);
	if (text)
		http_reply(r, 200, "application/x-ndjson", text, len, NULL);
	else
		reply_json(r, 500, NULL);
}
