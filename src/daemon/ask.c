/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One question, one answer. The conversation ends with the agent's frame, the
 * request with its reply; both may end first.
 */
#include "daemon/ask.h"
#include "daemon/daemon.h"
#include "daemon/exec.h"
#include "daemon/limits.h"
#include "daemon/probe.h"
#include "daemon/reply.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct ask {
	struct request *r;
	struct sandbox *sb;
	struct sandbox_user user;
	struct agent_stream *s; /* NULL once it is over */
	struct loop_timer limit;
	const struct ask_ops *ops;
	char *data; /* owned; NULL: nothing follows the object */
	size_t len, sent;
	size_t held; /* of sb->held, for data */
	uint64_t note;
};

struct sandbox *ask_sandbox(const struct request *r)
{
	const struct ask *a = r->state;

	return a->sb;
}

uint64_t ask_note(const struct request *r)
{
	const struct ask *a = r->state;

	return a->note;
}

/* It is with the agent, or not needed any more. Harmless the second time. */
static void ask_drop_data(struct ask *a)
{
	if (!a->data)
		return; /* the sandbox may be gone */
	held_give(&a->sb->held, a->held);
	a->held = 0;
	free(a->data);
	a->data = NULL;
}

/* What follows the object, as far as there is room. */
static void ask_feed(struct ask *a)
{
	while (a->data) {
		size_t left = a->len - a->sent, room = agent_room(a->s);
		size_t n = left < room ? left : room;

		if (left && n == 0)
			return;
		if (n)
			agent_send(a->s, FRAME_DATA_IN, a->data + a->sent, n);
		a->sent += n;
		if (a->sent < a->len)
			continue;
		agent_send(a->s, FRAME_END_IN, NULL, 0);
		ask_drop_data(a);
	}
}

/* The conversation is over; the stream has been released or closed. */
static void ask_over(struct ask *a)
{
	a->s = NULL;
	ask_drop_data(a);
	loop_timer_cancel(&a->limit);
	sandbox_drop_user(&a->user);
}

static void ask_lost(struct ask *a, const char *why)
{
	struct sandbox *sb = a->sb;

	if (sandbox_is_ending(sb) || !a->s)
		return; /* ask_on_sandbox_end() brings, or has brought, the reason */
	agent_close(a->s);
	ask_over(a);
	reply_error(a->r, 502, "agent_error", why, NULL, NULL);
	probe_start(sb);
}

static void ask_on_limit(struct loop_timer *t)
{
	struct ask *a = t->arg;

	if (a->sb->agent.hold) /* frozen for a fork: it answers later */
		loop_timer_set(&a->sb->d->loop, &a->limit,
			       a->sb->d->config.pong_within_s * SECOND_NS);
	else
		ask_lost(a, "the guest's agent did not answer");
}

static void ask_answered(struct ask *a, const struct frame *f)
{
	json_t *o = json_safe_load_few((const char *)f->payload, f->len, LIMIT_AGENT_LIST,
				       JSON_REJECT_DUPLICATES);

	if (!json_is_object(o) || !a->ops->ok(a->r, o)) {
		ask_lost(a, agent_error_text(json_safe_fault()));
	} else {
		if (a->ops->goes_on)
			agent_close(a->s);
		else
			agent_release(a->s);
		ask_over(a);
	}
	json_decref(o);
}

static void ask_on_stream(struct agent_stream *s)
{
	struct ask *a = s->user;
	struct agent_failure why;
	struct frame f;
	int rc;

	ask_feed(a);
	rc = agent_next(s, &f);
	if (rc == 0)
		return;
	if (rc == 1 && f.type == (a->ops->goes_on ? FRAME_EVENT : FRAME_OK) && !a->data) {
		ask_answered(a, &f);
	} else if (rc == 1 && f.type == FRAME_ERROR) {
		agent_failure_parse(&f, &why);
		if (a->ops->refused)
			a->ops->refused(&why);
		if (a->data)
			agent_close(s);
		else
			agent_release(s);
		ask_over(a);
		reply_error(a->r, why.status, why.code, why.message, NULL, why.field);
	} else {
		ask_lost(a, agent_error_text(rc < 0 ? rc : -EPROTO));
	}
}

static void ask_on_sandbox_end(struct sandbox_user *u, const char *reason)
{
	struct ask *a = u->arg;

	agent_close(a->s);
	ask_over(a);
	reply_ended(a->r, reason);
}

static void ask_end(struct request *r)
{
	struct ask *a = r->state;

	agent_close(a->s);
	ask_over(a);
	free(a);
}

static const struct request_ops ask_request_ops = {.end = ask_end};

/* The data of it waits, as code of an exec does. False: answered. */
static bool ask_hold(struct ask *a, struct request *r)
{
	size_t n = a->len > LIMIT_HELD_SMALL ? a->len : 0;
	int rc = held_take(&a->sb->held, n);

	if (rc == 0)
		a->held = n;
	else
		exec_refuse_held(r, rc);
	return rc == 0;
}

void ask_agent_with(struct request *r, struct sandbox *sb, uint8_t type, json_t *object, char *data,
		    size_t len, const struct ask_ops *ops, uint64_t note)
{
	_cleanup_free char *text = json_text(object);
	const struct config *c = &sb->d->config;
	struct ask *a = text ? calloc(1, sizeof(*a)) : NULL;
	struct err err = {0};

	json_decref(object);
	if (!a) {
		free(data);
		reply_json(r, 500, NULL);
		return;
	}
	a->sb = sb;
	a->data = data;
	a->len = len;
	if (!ask_hold(a, r)) {
		free(data);
		free(a);
		return;
	}
	a->s = agent_open(&sb->agent, ask_on_stream, a, &err);
	if (!a->s) {
		ask_drop_data(a);
		free(a);
		reply_no_stream(r, &err);
		return;
	}
	a->r = r;
	a->ops = ops;
	a->note = note;
	a->limit = (struct loop_timer){.fn = ask_on_limit, .arg = a};
	r->ops = &ask_request_ops;
	r->state = a;
	sandbox_add_user(sb, &a->user, ask_on_sandbox_end, a);
	loop_timer_set(&sb->d->loop, &a->limit,
		       (uint64_t)(c->ping_after_s + c->pong_within_s) * SECOND_NS);
	agent_cork(a->s);
	agent_send(a->s, type, text, strlen(text));
	ask_feed(a);
	agent_uncork(a->s);
}

void ask_agent(struct request *r, struct sandbox *sb, uint8_t type, json_t *object,
	       const struct ask_ops *ops)
{
	ask_agent_with(r, sb, type, object, NULL, 0, ops, 0);
}
