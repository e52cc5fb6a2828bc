/* SPDX-License-Identifier: Apache-2.0 */
/*
 * POST /v1/sandboxes/:id/commands/:command_id/stdin: the body goes to the
 * command as it comes, no faster than the command takes it, and the answer
 * means that it has taken all. One client at a time writes: the agent sees to
 * it.
 *
 * The agent learns a moment late that the writer before has left (its stream
 * was closed): one that finds the place taken asks again for a while.
 */
#include "daemon/api.h"
#include "daemon/command.h"
#include "daemon/limits.h"
#include "daemon/query.h"
#include "daemon/reply.h"
#include "lib/io.h"

#include <errno.h>
#include <string.h>

struct command_input {
	struct attach a; /* first */
	struct request *r;
	bool close;        /* its stdin, behind the last byte */
	bool whole, asked; /* the body is there; PING was sent behind all */
	uint64_t begin_ns; /* of the request */
	struct loop_timer again;
};

static struct command_input *input_of(struct attach *a)
{
	return (struct command_input *)a;
}

static void input_lost(struct attach *a, int error)
{
	command_reply_lost(input_of(a)->r, error);
}

static void input_ended(struct attach *a, const char *reason)
{
	attach_close(a);
	reply_ended(input_of(a)->r, reason);
}

/* The agent does not let it in. */
static void input_refused(struct command_input *in, const struct frame *f)
{
	struct attach *a = &in->a;
	struct agent_failure why;

	agent_failure_parse(f, &why);
	if (agent_failure_is(&why, "busy") && !a->attached &&
	    io_now_ns() - in->begin_ns < WRITER_LEAVES_NS) {
		attach_close(a);
		loop_timer_set(in->r->http->loop, &in->again, WRITER_RETRY_NS);
		return;
	}
	attach_close(a);
	command_refused(&why);
	if (agent_failure_is(&why, "bad_request")) { /* it was started without a stdin */
		why.status = 409;
		why.code = "stdin_closed";
	}
	reply_error(in->r, why.status, why.code, why.message, NULL, NULL);
}

static void input_frame(struct command_input *in, const struct frame *f)
{
	struct attach *a = &in->a;

	switch (f->type) {
	case FRAME_ERROR:
		input_refused(in, f);
		return;
	case FRAME_EXIT:
		/* PING may have crossed it: this stream is not for another conversation. */
		attach_close(a);
		if (in->asked)
			reply_empty(in->r);
		else
			reply_error(in->r, 409, "command_ended", "the command has ended", NULL,
				    NULL);
		return;
	case FRAME_PONG:
		attach_close(a);
		if (in->asked)
			reply_empty(in->r);
		else
			input_lost(a, -EPROTO);
		return;
	default:
		return; /* output, which is nothing to us */
	}
}

static void input_go_on(struct command_input *in)
{
	struct attach *a = &in->a;

	if (!a->s || !a->attached || in->asked)
		return;
	if (!in->whole) {
		if (attach_room(a))
			http_wake(in->r);
		return;
	}
	if (a->unacked)
		return;
	if (in->close)
		agent_send(a->s, FRAME_STDIN_END, NULL, 0);
	/* The answer comes when the agent has seen the end, too. */
	agent_send(a->s, FRAME_PING, "podflare", 8);
	in->asked = true;
}

static void input_event(struct attach *a)
{
	struct command_input *in = input_of(a);
	struct frame f;

	while (attach_next(a, &f) > 0)
		input_frame(in, &f);
	input_go_on(in);
}

static size_t input_body(struct request *r, const void *data, size_t len)
{
	struct command_input *in = r->state;
	size_t room = attach_room(&in->a);

	if (len > room)
		len = room; /* 0 also when it failed: the answer is under way */
	if (len)
		attach_send(&in->a, data, len);
	return len;
}

static void input_end(struct request *r)
{
	struct command_input *in = r->state;

	loop_timer_cancel(&in->again);
	attach_close(&in->a);
	/* A callback of the stream may be up the stack. */
	loop_defer_free(r->http->loop, in);
}

static const struct attach_ops input_attach_ops = {input_event, input_lost, input_ended};
static const struct request_ops input_ops = {.body = input_body, .end = input_end};

/* 0, or an error. */
static int input_open(struct command_input *in, struct sandbox *sb, struct err *err)
{
	static const int64_t only_new[2] = {-1, -1};

	in->a = (struct attach){0};
	return attach_open(&in->a, sb, in->r->match.other, only_new, true, &input_attach_ops, err);
}

static void input_again(struct loop_timer *t)
{
	struct command_input *in = t->arg;
	struct sandbox *sb = api_find_sandbox(in->r);
	struct err err = {0};

	if (sb && input_open(in, sb, &err) < 0)
		reply_no_stream(in->r, &err);
}

/* The parameter `close`: 0 or 1. False: answered. */
static bool input_close(struct request *r, bool *out)
{
	_cleanup_free char *text = NULL;
	int rc = query_get(r->query, "close", &text);

	*out = rc == 0 && strcmp(text, "1") == 0;
	if (rc == -ENOENT || *out || (rc == 0 && strcmp(text, "0") == 0))
		return true;
	if (rc == -ENOMEM)
		reply_json(r, 500, NULL);
	else
		reply_invalid(r, "close", "close must be 0 or 1");
	return false;
}

void api_stdin_begin(struct request *r)
{
	struct sandbox *sb = command_sandbox(r);
	struct command_input *in;
	struct err err = {0};
	bool end;

	if (!sb || !input_close(r, &end))
		return;
	in = calloc(1, sizeof(*in));
	if (!in) {
		reply_json(r, 500, NULL);
		return;
	}
	in->r = r;
	in->close = end;
	in->begin_ns = io_now_ns();
	in->again = (struct loop_timer){.fn = input_again, .arg = in};
	if (input_open(in, sb, &err) < 0) {
		free(in);
		reply_no_stream(r, &err);
		return;
	}
	r->ops = &input_ops;
	r->state = in;
}

void api_stdin_finish(struct request *r)
{
	struct command_input *in = r->state;

	in->whole = true;
	input_go_on(in);
}
