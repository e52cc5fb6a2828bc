/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FREEZE and THAW. The agent does not thaw by itself when the stream is lost, so
 * whatever is not known to be thawed is thawed, on a second stream if need be;
 * "not frozen" is as good an answer to that as OK.
 *
 * THAW brings new randomness for the guest's kernel: copies have all that its
 * generator was when they were made, and root in one of them can read it.
 */
#include "daemon/freeze.h"
#include "daemon/agent_failure.h"
#include "daemon/daemon.h"
#include "daemon/limits.h"
#include "daemon/renew.h"
#include "daemon/sandbox.h"
#include "lib/json_safe.h"
#include "lib/log.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

static void freeze_send_thaw(struct freeze *f);

void freeze_drop(struct freeze *f)
{
	if (!f->sb)
		return;
	loop_timer_cancel(&f->timer);
	agent_close(f->s);
	f->s = NULL;
	f->sb = NULL;
}

/* It is known that everything goes on. */
static void freeze_over(struct freeze *f)
{
	struct sandbox *sb = f->sb;
	bool failed = f->failure[0] != '\0';

	loop_timer_cancel(&f->timer);
	if (f->s)
		agent_release(f->s);
	f->s = NULL;
	f->sb = NULL;
	agent_unhold(&sb->agent);
	if (failed)
		f->ops->frozen(f, f->failure);
	else
		f->ops->thawed(f);
}

/* The stream is of no use: why is a sentence. */
static void freeze_lost(struct freeze *f, const char *why)
{
	struct sandbox *sb = f->sb;

	if (sandbox_is_ending(sb))
		return; /* the owner is told */
	agent_close(f->s);
	f->s = NULL;
	if (f->frozen && !f->thawing)
		return; /* it stays so; freeze_end() takes another stream */
	if (f->again) {
		sandbox_end(sb, false, "it could not be set going again after it was frozen: %s",
			    why);
		return;
	}
	if (!f->thawing)
		snprintf(f->failure, sizeof(f->failure), "%s while the sandbox was being frozen",
			 why);
	f->thawing = f->again = true;
	freeze_send_thaw(f);
}

static void freeze_error(struct freeze *f, const struct frame *frame)
{
	struct agent_failure why;

	agent_failure_parse(frame, &why);
	if (f->frozen && !f->thawing) {
		freeze_lost(f, agent_error_text(-EPROTO));
		return;
	}
	if (f->thawing && strcmp(why.code, "invalid_request") != 0) {
		freeze_lost(f, why.message);
		return;
	}
	if (!f->thawing)
		snprintf(f->failure, sizeof(f->failure), "the sandbox cannot be frozen: %s",
			 why.message);
	freeze_over(f);
}

/* It goes on in any case; what it says about the new randomness is for the log. */
static void freeze_thawed(struct freeze *f, const struct frame *ok)
{
	json_t *o = json_safe_load_few((const char *)ok->payload, ok->len, LIMIT_AGENT_VALUES, 0);
	const char *why = json_string_value(json_object_get(o, "entropy_error"));
	char text[160];

	if (why) {
		agent_failure_text(text, sizeof(text), why);
		log_warn("sandbox %s goes on with random numbers that its copies may know: %s",
			 f->sb->id, text);
	}
	json_decref(o);
	freeze_over(f);
}

static void freeze_frame(struct freeze *f, int rc, const struct frame *frame)
{
	if (rc == 1 && frame->type == FRAME_ERROR) {
		freeze_error(f, frame);
	} else if (rc == 1 && frame->type == FRAME_OK && f->thawing) {
		freeze_thawed(f, frame);
	} else if (rc == 1 && frame->type == FRAME_OK && !f->frozen) {
		loop_timer_cancel(&f->timer);
		f->frozen = true;
		f->ops->frozen(f, NULL);
	} else {
		freeze_lost(f, agent_error_text(rc < 0 ? rc : -EPROTO));
	}
}

static void freeze_on_stream(struct agent_stream *s)
{
	struct freeze *f = s->user;
	struct frame frame = {0};
	int rc = 1;

	/* To the last frame: what was not taken is not waited for. */
	while (f->s == s && rc == 1 && (rc = agent_next(s, &frame)) != 0)
		freeze_frame(f, rc, &frame);
}

static void freeze_on_timer(struct loop_timer *t)
{
	struct freeze *f = t->arg;

	if (f->failure[0] && !f->thawing)
		freeze_over(f); /* it was not asked */
	else
		freeze_lost(f, "the guest does not answer");
}

/* The request's text, and how long it is. What cannot be had is no reason not to thaw. */
static size_t freeze_text(uint8_t type, char *out, size_t size)
{
	char base64[BASE64_SIZE(RENEW_ENTROPY)];
	int n;

	if (type != FRAME_THAW || renew_entropy(base64) < 0)
		return (size_t)snprintf(out, size, "{}");
	n = snprintf(out, size, "{\"entropy\":\"%.*s\"}", (int)sizeof(base64), base64);
	explicit_bzero(base64, sizeof(base64));
	return (size_t)n;
}

static void freeze_send(struct freeze *f, uint8_t type)
{
	struct err err = {0};
	char text[80];
	size_t n;

	if (!f->s)
		f->s = agent_open_new(&f->sb->agent, freeze_on_stream, f, &err);
	if (!f->s && type == FRAME_FREEZE) {
		/* Nothing stands still. Told from the loop, as every answer is. */
		snprintf(f->failure, sizeof(f->failure), "the sandbox cannot be frozen: %s",
			 err.msg);
		loop_timer_set(f->sb->agent.loop, &f->timer, 0);
		return;
	}
	if (!f->s) {
		freeze_lost(f, err.msg);
		return;
	}
	loop_timer_set(f->sb->agent.loop, &f->timer, f->sb->d->config.freeze_timeout_s * SECOND_NS);
	n = freeze_text(type, text, sizeof(text));
	agent_send(f->s, type, text, n);
	explicit_bzero(text, sizeof(text));
}

static void freeze_send_thaw(struct freeze *f)
{
	freeze_send(f, FRAME_THAW);
}

void freeze_begin(struct freeze *f, struct sandbox *sb, const struct freeze_ops *ops)
{
	*f = (struct freeze){.ops = ops, .sb = sb, .timer = {.fn = freeze_on_timer, .arg = f}};
	agent_hold(&sb->agent);
	/*
	 * On a new stream, not a kept one: the agent knows then of all that were opened before it
	 * freezes, and lets them rest. One that it meets afterwards it would refuse.
	 */
	freeze_send(f, FRAME_FREEZE);
}

void freeze_end(struct freeze *f)
{
	f->thawing = true;
	freeze_send_thaw(f);
}
