/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The beginning, the failures and the end of a transfer, and how long its guest may
 * be silent; what lies between them is in api_files.c and api_file_list.c.
 */
#include "daemon/transfer.h"
#include "daemon/daemon.h"
#include "daemon/limits.h"
#include "daemon/probe.h"
#include "daemon/query.h"
#include "daemon/reply.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

char *transfer_path(struct request *r)
{
	char *path = NULL;
	int rc = query_get(r->query, "path", &path);

	if (rc == -ENOENT || (rc == 0 && !*path))
		reply_invalid(r, "path", "path is missing");
	else if (rc == -EEXIST)
		reply_invalid(r, "path", "path is given more than once");
	else if (rc == -EINVAL)
		reply_invalid(r, "path",
			      "path is not valid: a broken escape, a NUL character, or "
			      "not UTF-8");
	else if (rc < 0)
		reply_json(r, 500, NULL);
	else if (strlen(path) > LIMIT_PATH)
		reply_invalid(r, "path", "path is longer than %u bytes", LIMIT_PATH);
	else
		return path;
	free(path);
	return NULL;
}

/* --- the end ----------------------------------------------------------------------------- */

void transfer_close(struct transfer *t)
{
	loop_timer_cancel(&t->silence);
	agent_close(t->s);
	t->s = NULL;
}

void transfer_fail(struct transfer *t, const struct agent_failure *why)
{
	transfer_close(t);
	if (t->begun) {
		t->cut = true;
		http_wake(t->r);
		return;
	}
	reply_error(t->r, why->status, why->code, why->message, NULL, why->field);
}

static void transfer_lose(struct transfer *t, const char *text)
{
	struct agent_failure why = {.status = 502, .code = "agent_error"};

	if (!t->sb || sandbox_is_ending(t->sb))
		return; /* transfer_on_sandbox_end() brings the reason */
	snprintf(why.message, sizeof(why.message), "%s", text);
	transfer_fail(t, &why);
	probe_start(t->sb);
}

void transfer_lost(struct transfer *t, int error)
{
	transfer_lose(t, agent_error_text(error));
}

static void transfer_on_sandbox_end(struct sandbox_user *u, const char *reason)
{
	struct transfer *t = u->arg;
	bool over = !t->s;

	t->sb = NULL;
	if (over)
		return; /* all that it had to say has been said */
	transfer_close(t);
	t->len = 0;
	if (t->begun) {
		t->cut = true;
		http_wake(t->r);
	} else {
		reply_ended(t->r, reason);
	}
}

void transfer_done(struct transfer *t)
{
	loop_timer_cancel(&t->silence);
	agent_release(t->s);
	t->s = NULL;
}

void transfer_end(struct transfer *t)
{
	struct frame f;

	loop_timer_cancel(&t->silence);
	/* A download that was taken whole has its END still in the stream. */
	if (t->s && t->begun && !t->len && agent_next(t->s, &f) == 1 && f.type == FRAME_END_OUT)
		agent_release(t->s);
	else
		agent_close(t->s);
	sandbox_drop_user(&t->user);
	free(t);
}

/* --- silence ----------------------------------------------------------------------------- */

static void silence_set(struct transfer *t, uint64_t ns)
{
	t->held_ns = agent_held_ns(&t->sb->agent);
	loop_timer_set(&t->sb->d->loop, &t->silence, ns);
}

static void transfer_on_silence(struct loop_timer *timer)
{
	struct transfer *t = timer->arg;
	const struct config *c = &t->sb->d->config;
	uint64_t held = agent_held_ns(&t->sb->agent) - t->held_ns;

	if (held) {
		/* Frozen for a fork: as long again as it could do nothing. */
		silence_set(t, held < LATE_AGAIN_NS ? LATE_AGAIN_NS : held);
		return;
	}
	if (t->pinged) {
		transfer_lose(t, "the guest's agent did not answer");
		return;
	}
	t->pinged = true;
	/* One that it still owes an answer for is as good as another. */
	if (!t->s->pings)
		agent_send(t->s, FRAME_PING, "podflare", 8);
	t->unsent = buf_len(&t->s->out.out);
	silence_set(t, c->pong_within_s * SECOND_NS);
}

void transfer_await(struct transfer *t)
{
	if (!loop_timer_armed(&t->silence))
		silence_set(t, t->sb->d->config.ping_after_s * SECOND_NS);
}

void transfer_heard(struct transfer *t)
{
	t->pinged = false;
	loop_timer_cancel(&t->silence);
}

void transfer_sends(struct transfer *t, bool all)
{
	size_t unsent = t->s ? buf_len(&t->s->out.out) : 0;

	if (!t->s)
		return;
	if (unsent < t->unsent)
		transfer_heard(t);
	t->unsent = unsent;
	if (unsent || all)
		transfer_await(t);
	else
		transfer_heard(t);
}

/* --- the beginning ----------------------------------------------------------------------- */

struct transfer *transfer_begin(struct request *r, struct sandbox *sb, uint8_t type, json_t *object,
				size_t size, agent_stream_fn *fn, const struct request_ops *ops)
{
	_cleanup_free char *text = json_text(object);
	struct transfer *t = text ? calloc(1, size) : NULL;
	struct err err = {0};

	json_decref(object);
	if (!t) {
		reply_json(r, 500, NULL);
		return NULL;
	}
	t->s = agent_open(&sb->agent, fn, t, &err);
	if (!t->s) {
		free(t);
		reply_no_stream(r, &err);
		return NULL;
	}
	t->r = r;
	t->sb = sb;
	t->silence = (struct loop_timer){.fn = transfer_on_silence, .arg = t};
	sandbox_add_user(sb, &t->user, transfer_on_sandbox_end, t);
	r->ops = ops;
	r->state = t;
	agent_send(t->s, type, text, strlen(text));
	return t;
}
