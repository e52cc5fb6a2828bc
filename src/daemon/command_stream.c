/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET /v1/sandboxes/:id/commands/:command_id/stream: events of a kept command,
 * from given positions until its exit. A client that leaves leaves it running;
 * one that does not read slows it down only as far as the agent lets it, since
 * the output is kept there.
 *
 * Invariant of back-pressure, as of an exec: while the event lines are full
 * (ndjson_full), frames are not taken from the stream.
 */
#include "daemon/api.h"
#include "daemon/command.h"
#include "daemon/exec_events.h"
#include "daemon/limits.h"
#include "daemon/ndjson.h"
#include "daemon/reply.h"
#include "lib/io.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct command_stream {
	struct attach a; /* first */
	struct request *r;
	struct ndjson out;
	struct exec_pending in; /* output that was not taken yet: inside the stream */
	bool begun, paused, broken, done;
};

static struct command_stream *stream_of(struct attach *a)
{
	return (struct command_stream *)a;
}

static int64_t now_ms(void)
{
	return (int64_t)(io_realtime_ns() / 1000000);
}

/* The reply begins. */
static void stream_begin(struct command_stream *cs)
{
	const struct attach *a = &cs->a;
	json_t *o = json_pack("{s:s, s:I, s:I, s:I}", "command_id", cs->r->match.other, "pid",
			      (json_int_t)a->pid, "stdout", (json_int_t)a->offset[0], "stderr",
			      (json_int_t)a->offset[1]);

	cs->begun = true;
	cs->out.offset[NDJSON_STDOUT] = (uint64_t)a->offset[0];
	cs->out.offset[NDJSON_STDERR] = (uint64_t)a->offset[1];
	if (!o || ndjson_event(&cs->out, "started", o, now_ms()) < 0)
		cs->broken = true;
	json_decref(o);
	http_reply_stream(cs->r, 200, "application/x-ndjson", -1, NULL);
}

/* Nothing more comes. */
static void stream_done(struct command_stream *cs)
{
	exec_pending_free(&cs->in); /* it points into the stream */
	cs->done = true;
	http_wake(cs->r);
}

static int stream_exit(struct command_stream *cs, const struct frame *f)
{
	struct exec_exit x = {0};
	bool cancelled;
	int rc = exec_exit_parse(f, &x, &cancelled);

	if (cancelled) /* by another client: it was deleted */
		x.reason = "interrupted";
	if (rc == 0 && exec_events_exit(&cs->out, &x, now_ms()) < 0)
		cs->broken = true;
	json_decref(x.log);
	return rc;
}

static void stream_lost(struct attach *a, int error)
{
	struct command_stream *cs = stream_of(a);
	const struct exec_exit x = {.code = -1, .reason = "agent_error"};
	char text[160];

	if (!cs->begun) {
		cs->begun = true;
		command_reply_lost(cs->r, error);
		return;
	}
	snprintf(text, sizeof(text), "%s while the command ran", agent_error_text(error));
	if (exec_events_failed(&cs->out, text, &x, now_ms()) < 0)
		cs->broken = true;
	stream_done(cs);
}

/* What was there when the client asked for it is gone: it was too slow. */
static int stream_moved(struct command_stream *cs)
{
	int rc =
		exec_events_notice(&cs->out, "output was thrown away before it was read", now_ms());

	/* Behind the notice, which emits what is held. */
	for (size_t i = 0; i < ARRAY_SIZE(cs->a.offset); i++) {
		if ((uint64_t)cs->a.offset[i] < cs->out.offset[i])
			return -EPROTO;
		cs->out.offset[i] = (uint64_t)cs->a.offset[i];
	}
	return rc;
}

/* A frame of an attached stream. Negative: the stream is to be given up. */
static int stream_frame(struct command_stream *cs, const struct frame *f)
{
	int rc;

	switch (f->type) {
	case FRAME_STDOUT:
	case FRAME_STDERR:
		exec_pending_bytes(&cs->in, f);
		return 0;
	case FRAME_EVENT:
		if (cs->a.moved)
			return stream_moved(cs);
		agent_spend(cs->a.s, f->len);
		return exec_events_event(&cs->out, &cs->in, f->payload, f->len, now_ms());
	case FRAME_EXIT:
		rc = stream_exit(cs, f);
		if (rc == 0) {
			attach_release(&cs->a);
			stream_done(cs);
		}
		return rc;
	default:
		return -EPROTO;
	}
}

/* Output that waits goes into lines. False: they are full, the client sets the pace. */
static bool stream_room(struct command_stream *cs)
{
	if (cs->broken)
		exec_pending_free(&cs->in);
	if (exec_pending_any(&cs->in) && exec_pending_take(&cs->in, &cs->out, now_ms()) < 0) {
		cs->broken = true;
		exec_pending_free(&cs->in);
	}
	return !exec_pending_any(&cs->in) && !ndjson_full(&cs->out);
}

static void stream_pump(struct command_stream *cs)
{
	struct attach *a = &cs->a;
	struct frame f;

	while (a->s && !(cs->paused = !stream_room(cs))) {
		int rc = attach_next(a, &f);

		if (!cs->begun && a->attached)
			stream_begin(cs);
		if (rc == 0)
			break;
		if (f.type == FRAME_ERROR && !cs->begun) {
			cs->begun = true;
			command_reply_refused(cs->r, &f);
			attach_release(a);
			break;
		}
		rc = stream_frame(cs, &f);
		if (rc == -ENOMEM && f.type != FRAME_EXIT) {
			cs->broken = true;
		} else if (rc < 0) {
			attach_close(a);
			stream_lost(a, rc);
		}
	}
	if (cs->begun)
		http_wake(cs->r);
}

static void stream_event(struct attach *a)
{
	stream_pump(stream_of(a));
}

static void stream_ended(struct attach *a, const char *reason)
{
	struct command_stream *cs = stream_of(a);
	struct exec_exit x = {
		.code = -1, .reason = a->sb->closed ? "closed" : "vm_ended", .state = "lost"};
	char text[1500];

	stream_pump(cs);
	if (!a->s)
		return; /* it had come to its own end */
	attach_close(a);
	if (!cs->begun) {
		cs->begun = true;
		reply_ended(cs->r, reason);
		return;
	}
	snprintf(text, sizeof(text), "sandbox ended: %s", reason);
	if (exec_events_failed(&cs->out, text, &x, now_ms()) < 0)
		cs->broken = true;
	stream_done(cs);
}

static ssize_t stream_pull(struct request *r, char *out, size_t max)
{
	struct command_stream *cs = r->state;
	size_t n = buf_len(&cs->out.out);

	if (n < NDJSON_HIGH / 2 && cs->paused && !cs->done) {
		stream_pump(cs);
		n = buf_len(&cs->out.out);
	}
	if (cs->broken)
		return PULL_ABORT;
	if (n == 0)
		return cs->done ? PULL_END : PULL_WAIT;
	if (n > max)
		n = max;
	memcpy(out, buf_data(&cs->out.out), n);
	buf_consume(&cs->out.out, n);
	ndjson_taken(&cs->out);
	return (ssize_t)n;
}

static void stream_end(struct request *r)
{
	struct command_stream *cs = r->state;

	exec_pending_free(&cs->in);
	attach_close(&cs->a);
	ndjson_free(&cs->out);
	/* A callback of the stream may be up the stack. */
	loop_defer_free(r->http->loop, cs);
}

static const struct attach_ops stream_attach_ops = {stream_event, stream_lost, stream_ended};
static const struct request_ops stream_ops = {.pull = stream_pull, .end = stream_end};

void api_command_stream(struct request *r)
{
	struct sandbox *sb = command_sandbox(r);
	struct command_stream *cs;
	struct err err = {0};
	int64_t offset[2];

	if (!sb || !attach_offsets(r, offset))
		return;
	cs = calloc(1, sizeof(*cs));
	if (!cs) {
		reply_json(r, 500, NULL);
		return;
	}
	if (attach_open(&cs->a, sb, r->match.other, offset, false, &stream_attach_ops, &err) < 0) {
		free(cs);
		reply_no_stream(r, &err);
		return;
	}
	cs->r = r;
	ndjson_init(&cs->out, true);
	cs->out.offsets = true;
	r->ops = &stream_ops;
	r->state = cs;
}
