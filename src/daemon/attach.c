/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attaching to a kept command. Whatever the agent says is checked here as far
 * as it is about the conversation; what frames carry is their taker's to check.
 */
#include "daemon/attach.h"
#include "daemon/daemon.h"
#include "daemon/json_span.h"
#include "daemon/limits.h"
#include "daemon/probe.h"
#include "daemon/query.h"
#include "daemon/reply.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool parse_offset(const char *text, int64_t *out)
{
	size_t digits = strspn(text, "0123456789");

	if (strcmp(text, "-1") == 0) {
		*out = -1;
		return true;
	}
	/* 18 digits always fit. */
	if (digits == 0 || digits > 18 || text[digits])
		return false;
	*out = strtoll(text, NULL, 10);
	return true;
}

bool attach_offsets(struct request *r, int64_t out[2])
{
	static const char *const names[] = {"stdout", "stderr"};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		_cleanup_free char *text = NULL;
		int rc = query_get(r->query, names[i], &text);

		out[i] = 0;
		if (rc == -ENOENT)
			continue;
		if (rc == -ENOMEM) {
			reply_json(r, 500, NULL);
			return false;
		}
		if (rc < 0 || !parse_offset(text, &out[i])) {
			reply_invalid(r, names[i],
				      "%s must be a position, given once: a number from 0, or -1 "
				      "for what is new",
				      names[i]);
			return false;
		}
	}
	return true;
}

/* It is over; the stream has been released or closed. */
static void attach_over(struct attach *a)
{
	a->s = NULL;
	loop_timer_cancel(&a->silence);
}

void attach_release(struct attach *a)
{
	agent_release(a->s);
	attach_over(a);
}

void attach_close(struct attach *a)
{
	agent_close(a->s);
	attach_over(a);
	sandbox_drop_user(&a->user);
}

static void attach_lost(struct attach *a, int error)
{
	struct sandbox *sb = a->sb;

	if (sandbox_is_ending(sb) || !a->s)
		return; /* attach_on_sandbox_end() brings, or has brought, the reason */
	attach_close(a);
	a->ops->lost(a, error);
	probe_start(sb);
}

/* --- silence ----------------------------------------------------------------------------- */

static void attach_heard(struct attach *a)
{
	const struct config *c = &a->sb->d->config;
	uint64_t s = c->ping_after_s + (a->attached ? 0 : c->pong_within_s);

	loop_timer_set(&a->sb->d->loop, &a->silence, s * SECOND_NS);
}

static void attach_on_silence(struct loop_timer *t)
{
	struct attach *a = t->arg;

	if (!a->sb->agent.hold && !a->attached) {
		attach_lost(a, -ETIMEDOUT);
		return;
	}
	/* A command may be silent for days; while the guest is frozen, so is it. */
	if (!a->sb->agent.hold)
		probe_start(a->sb);
	attach_heard(a);
}

/* --- frames ------------------------------------------------------------------------------ */

static int attach_acked(struct attach *a, const struct frame *f)
{
	uint32_t n;

	if (f->len != 4)
		return -EPROTO;
	n = (uint32_t)f->payload[0] | (uint32_t)f->payload[1] << 8 | (uint32_t)f->payload[2] << 16 |
	    (uint32_t)f->payload[3] << 24;
	if (n == 0 || n > a->unacked)
		return -EPROTO;
	a->unacked -= n;
	return 0;
}

/* An EVENT: 1 when it is the owner's, 0 when it told where the conversation begins, -errno. */
static int attach_event(struct attach *a, const struct frame *f)
{
	static const char *const names[] = {"type", "stdout", "stderr", "pid"};
	struct json_span text = {f->payload, f->len}, v[4];

	a->moved = false;
	agent_spend(a->s, f->len);
	if (json_span_members(text, names, v, 4) < 0 || !json_span_is(v[0], '"'))
		return -EPROTO;
	if (!json_span_equals(v[0], "position"))
		return a->attached ? 1 : -EPROTO;
	if (!json_span_count(v[1], &a->offset[0]) || !json_span_count(v[2], &a->offset[1]) ||
	    !json_span_count(v[3], &a->pid))
		return -EPROTO;
	a->moved = a->attached;
	a->attached = true;
	return a->moved;
}

/* 1: a frame for the owner, 0: it was for us, -errno. */
static int attach_frame(struct attach *a, const struct frame *f)
{
	switch (f->type) {
	case FRAME_ERROR:
		return 1;
	case FRAME_EVENT:
		return attach_event(a, f);
	case FRAME_STDIN_ACK:
		return attach_acked(a, f);
	case FRAME_STDOUT:
	case FRAME_STDERR:
	case FRAME_EXIT:
	case FRAME_PONG:
		return a->attached ? 1 : -EPROTO;
	default:
		return -EPROTO;
	}
}

static int attach_take(struct attach *a, struct frame *f, bool first)
{
	while (a->s && !(first && a->attached)) {
		int rc = agent_next(a->s, f);

		if (rc == 0)
			return 0;
		if (rc > 0) {
			rc = attach_frame(a, f);
			attach_heard(a);
		}
		if (rc > 0)
			return rc;
		if (rc < 0) {
			attach_lost(a, rc);
			return 0;
		}
	}
	return 0;
}

int attach_next(struct attach *a, struct frame *f)
{
	return attach_take(a, f, false);
}

int attach_first(struct attach *a, struct frame *f)
{
	return attach_take(a, f, true);
}

static void attach_on_stream(struct agent_stream *s)
{
	struct attach *a = s->user;

	a->ops->event(a);
}

static void attach_on_sandbox_end(struct sandbox_user *u, const char *reason)
{
	struct attach *a = u->arg;

	if (a->s)
		a->ops->ended(a, reason);
}

size_t attach_room(const struct attach *a)
{
	size_t room = a->s && a->attached ? agent_room(a->s) : 0;
	size_t window = STDIN_WINDOW - a->unacked;

	return room < window ? room : window;
}

void attach_send(struct attach *a, const void *data, size_t len)
{
	a->unacked += (uint32_t)len;
	agent_send(a->s, FRAME_STDIN, data, len);
}

int attach_open(struct attach *a, struct sandbox *sb, const char *id, const int64_t offset[2],
		bool stdin_too, const struct attach_ops *ops, struct err *err)
{
	json_t *o = json_pack("{s:s, s:s, s:I, s:I, s:b}", "op", "attach", "id", id, "stdout",
			      (json_int_t)offset[0], "stderr", (json_int_t)offset[1], "stdin",
			      stdin_too);
	_cleanup_free char *text = json_text(o);

	json_decref(o);
	if (!text)
		return err_text(err, ENOMEM, "no memory");
	a->s = agent_open(&sb->agent, attach_on_stream, a, err);
	if (!a->s)
		return -EIO;
	a->ops = ops;
	a->sb = sb;
	a->silence = (struct loop_timer){.fn = attach_on_silence, .arg = a};
	sandbox_add_user(sb, &a->user, attach_on_sandbox_end, a);
	attach_heard(a);
	agent_send(a->s, FRAME_COMMAND, text, strlen(text));
	return 0;
}
