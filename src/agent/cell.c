/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cells of the REPL. One runs; one waits for the REPL to start, or for a
 * cancelled cell whose client has gone to end. Any other is refused as busy,
 * for the host is expected to queue; but only after a moment, since the host
 * may have closed the stream of the one before already, and streams are not
 * ordered among each other.
 */
#define _GNU_SOURCE
#include "agent/cell.h"
#include "agent/agent.h"
#include "agent/output.h"
#include "agent/path.h"
#include "agent/stream.h"
#include "lib/fdpass.h"
#include "lib/io.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CELL_BUSY_WAIT_NS 1000000000ull
/* The session can bear two SIGINTs in the moment in which a cell ends, not any number. */
#define CELL_INTERRUPT_GAP_NS 100000000ull

void cell_free(struct repl_cell *c)
{
	alarm_cancel(&c->alarm);
	alarm_cancel(&c->last);
	alarm_cancel(&c->death);
	feed_close(&c->feed);
	request_exec_free(&c->req);
	list_del(&c->link);
	code_free(&c->code);
	free(c);
}

/* The event of which pieces have been passed on will not be completed. */
static void cell_drop_event(struct repl_cell *c)
{
	if (c->event_open) {
		stream_put(c->stream, FRAME_EVENT_PART, NULL, 0);
		c->end.dropped += c->event_passed;
	}
	c->event_open = false;
	c->event_passed = 0;
}

void cell_notice(struct repl_cell *c, const char *fmt, ...)
{
	char text[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	cell_drop_event(c);
	stream_put_json(c->stream, FRAME_EVENT,
			json_pack("{s:s, s:o}", "type", "notice", "text", stream_text(text)));
}

void cell_end_waiting(struct repl_cell *c, enum exec_stop stop)
{
	c->end.stop = stop;
	c->end.exit_code = 128 + SIGINT;
	stream_final(c->stream, FRAME_EXIT, exec_exit_object(&c->end, NULL));
	cell_free(c);
}

static void cell_on_cancel(struct stream *s, void *job)
{
	struct repl_cell *c = job;
	struct repl *r = c->repl;

	(void)s;
	if (c != r->cell)
		cell_end_waiting(c, EXEC_CANCELLED);
	else if (c->over)
		output_hurry(r->output);
	else
		cell_must_end(r, EXEC_CANCELLED);
}

static void cell_on_interrupt(struct stream *s, void *job)
{
	struct repl_cell *c = job;
	struct repl *r = c->repl;

	(void)s;
	if (c != r->cell) {
		cell_end_waiting(c, EXEC_INTERRUPTED);
	} else if (!c->over && !exec_must_end(c->end.stop) &&
		   io_now_ns() - c->interrupt_ns > CELL_INTERRUPT_GAP_NS) {
		c->interrupt_ns = io_now_ns();
		c->end.stop = EXEC_INTERRUPTED;
		cell_interrupt(r);
	}
}

static void cell_on_room(struct stream *s, void *job)
{
	struct repl_cell *c = job;
	struct repl *r = c->repl;

	(void)s;
	if (c != r->cell)
		return;
	feed_on_room(&c->feed);
	if (r->held == HELD_ROOM)
		repl_resume(r);
	else
		output_resume(r->output);
}

static int cell_on_input(struct stream *s, void *job, const uint8_t *p, size_t len)
{
	struct repl_cell *c = job;

	(void)s;
	return feed_put(&c->feed, p, len);
}

static int cell_on_input_end(struct stream *s, void *job)
{
	struct repl_cell *c = job;

	(void)s;
	return feed_end(&c->feed);
}

static void cell_on_gone(void *job)
{
	struct repl_cell *c = job;
	struct repl *r = c->repl;

	c->stream = NULL;
	feed_close(&c->feed);
	if (c != r->cell) {
		cell_free(c);
		return;
	}
	output_discard(r->output);
	if (r->held == HELD_ROOM)
		repl_resume(r);
	/* That may have been the end of it. */
	if (r->cell == c)
		cell_must_end(r, EXEC_CANCELLED);
}

static void cell_on_detach(void *job)
{
	struct repl_cell *c = job;
	struct repl *r = c->repl;

	c->stream = NULL;
	feed_close(&c->feed);
	if (c != r->cell) {
		cell_free(c);
		return;
	}
	c->detached = true;
	output_discard(r->output);
	if (r->held == HELD_ROOM)
		repl_resume(r);
}

static const struct stream_ops cell_ops = {
	.input = cell_on_input,
	.input_end = cell_on_input_end,
	.cancel = cell_on_cancel,
	.interrupt = cell_on_interrupt,
	.room = cell_on_room,
	.gone = cell_on_gone,
	.detach = cell_on_detach,
};

void repl_exec(struct repl *r, struct stream *s, struct request_exec *q, struct code *code)
{
	struct repl_cell *c;

	c = q->has_user && q->root != r->root ? NULL : calloc(1, sizeof(*c));
	if (!c)
		code_free(code);
	if (!c && q->has_user && q->root != r->root) {
		stream_error(s, EINVAL, "the user of this Python session is %s",
			     r->root ? "root" : "user");
		return;
	}
	if (!c) {
		stream_error(s, ENOMEM, "out of memory");
		return;
	}
	list_init(&c->link);
	c->repl = r;
	c->stream = s;
	c->req = *q;
	*q = (struct request_exec){0};
	if (c->req.input)
		feed_init(&c->feed, r->agent, s);
	alarm_init(&c->alarm, r->agent, cell_on_alarm, c);
	alarm_init(&c->last, r->agent, cell_on_last, c);
	alarm_init(&c->death, r->agent, cell_on_death, c);
	if (c->req.left_ns)
		alarm_set(&c->alarm, c->req.left_ns);
	c->code = *code;
	stream_set_job(s, &cell_ops, c);
	if (!list_empty(&r->waiting) || (r->cell && r->cell->stream))
		alarm_set(&r->busy_timer, CELL_BUSY_WAIT_NS);
	if (r->cell && r->cell->detached)
		cell_notice(c, "This sandbox was forked while a call was running; waiting for that "
			       "call to end.");
	list_add_tail(&r->waiting, &c->link);
	repl_start(r);
	cell_begin_next(r);
	repl_update_ctl(r);
}

void cell_on_busy_timer(void *arg)
{
	struct repl *r = arg;
	/* The first may wait on for a REPL that starts or is being freed. */
	bool keep_first = !r->cell || !r->cell->stream;

	list_for_each_safe (c, &r->waiting, struct repl_cell, link) {
		if (!keep_first) {
			stream_error(c->stream, EBUSY, "the Python session is running other code");
			cell_free(c);
		}
		keep_first = false;
	}
}

bool cell_has_more(const struct repl *r)
{
	return r->cell && !r->cell->end_sent;
}

/* Payload of the REPL's EXEC, "{}" when there are no wishes; NULL when out of memory. */
static char *cell_request(const struct request_exec *q)
{
	json_t *obj = json_pack("{s:s*}", "cwd", q->cwd);
	char *text = NULL;
	json_t *env;

	if (obj && q->nenv) {
		env = json_object();
		for (size_t i = 0; i < q->nenv; i++) {
			const char *value = strchr(q->env[i], '=') + 1;
			size_t n = (size_t)(value - q->env[i]) - 1;

			json_object_setn_new(env, q->env[i], n, json_string(value));
		}
		json_object_set_new(obj, "env", env);
	}
	if (obj && q->input)
		json_object_set_new(obj, "stdin", json_true());
	if (obj)
		text = json_text(obj);
	json_decref(obj);
	return text;
}

/* What only the session itself could refuse later, in worse words. */
static int cell_check(struct repl *r, const struct repl_cell *c, const char *request,
		      struct err *err)
{
	struct agent *a = r->agent;
	_cleanup_fd int cwd = -1;

	if (!request)
		return err_text(err, ENOMEM, "out of memory");
	if (strlen(request) > FRAME_PAYLOAD_MAX)
		return err_text(err, E2BIG, "\"env\" and \"cwd\" are too large together");
	if (!c->req.cwd)
		return 0;
	return path_open_dir(a, r, r->root ? &a->root : &a->user, c->req.cwd, &cwd, err);
}

/* The read end of the cell's input goes with the first byte that is sent next. */
static int cell_pass_input(struct repl *r)
{
	_cleanup_fd int fd = -1;
	struct buf *out = &r->ctl_out.out;
	int rc = feed_connect(&r->cell->feed, &fd);

	if (rc == 0)
		rc = fdpass_send(r->ctl_fd, buf_data(out), 1, &fd, 1);
	if (rc == 0)
		buf_consume(out, 1);
	return rc;
}

/* Also a session that has just begun has the environment of one without egress. */
static int cell_tell_egress(struct repl *r)
{
	const struct egress *e = &r->agent->egress;
	_cleanup_free char *text = NULL;
	json_t *obj = egress_session_env(e);

	if (obj)
		text = json_text(obj);
	json_decref(obj);
	r->egress = e->mode;
	return text ? frame_put(&r->ctl_out, FRAME_EGRESS, text, strlen(text)) : -ENOMEM;
}

static void cell_begin(struct repl *r, struct repl_cell *c, const char *request)
{
	r->cell = c;
	r->state = REPL_BUSY;
	c->end.start_ns = io_now_ns();
	c->oom_before = cgroup_oom_kills(r->cgroup);
	c->event_skip = r->event_bytes > 0; /* it was begun between cells */
	/* What threads and children wrote since the last cell belongs to nobody. */
	output_skip(r->output);
	output_begin(r->output, c->stream,
		     &(struct output_limit){.bytes = (uint64_t)c->req.output_limit,
					    .over = c->req.end_at_limit ? cell_on_limit : NULL,
					    .arg = c});
	if (r->lost)
		cell_notice(c,
			    "The Python session was lost (%s). This is a new one: variables, "
			    "functions and imports of earlier calls are gone.",
			    r->lost_why);
	r->lost = false;
	repl_pay(r);
	r->quiet = false;
	if ((r->egress != r->agent->egress.mode && cell_tell_egress(r) < 0) ||
	    frame_put(&r->ctl_out, FRAME_EXEC, request, strlen(request)) < 0 ||
	    (c->req.input && cell_pass_input(r) < 0))
		repl_kill(r, "its control channel has no room");
	cell_send_code(r);
}

void cell_begin_next(struct repl *r)
{
	while (!list_empty(&r->waiting) && r->state == REPL_READY && repl_lives(r)) {
		struct repl_cell *c = list_entry(r->waiting.next, struct repl_cell, link);
		_cleanup_free char *request = cell_request(&c->req);
		struct err err;

		list_del(&c->link);
		if (cell_check(r, c, request, &err) == 0) {
			cell_begin(r, c, request);
			return;
		}
		stream_fail(c->stream, &err);
		cell_free(c);
	}
}

/* The next n bytes of the code. */
static int cell_read_code(const struct repl_cell *c, uint8_t *buf, size_t n)
{
	if (c->code.fd >= 0)
		return io_pread_full(c->code.fd, buf, n, (off_t)c->sent);
	memcpy(buf, c->code.text + c->sent, n);
	return 0;
}

void cell_send_code(struct repl *r)
{
	struct repl_cell *c = r->cell;
	uint8_t *buf = r->agent->scratch;

	if (!c || c->end_sent || r->ctl_eof)
		return;
	while (c->sent < c->code.size) {
		size_t n = c->code.size - c->sent;

		if (frame_writer_room(&r->ctl_out) < FRAME_PAYLOAD_MAX)
			return; /* goes on when the socket takes more */
		if (n > FRAME_PAYLOAD_MAX)
			n = FRAME_PAYLOAD_MAX;
		if (cell_read_code(c, buf, n) < 0 ||
		    frame_put(&r->ctl_out, FRAME_DATA_IN, buf, n) < 0) {
			repl_kill(r, "the code could not be handed over");
			return;
		}
		c->sent += n;
	}
	if (frame_put(&r->ctl_out, FRAME_END_IN, NULL, 0) == 0)
		c->end_sent = true;
}

/* EXIT of the REPL: {"exit_code": 0..255, ...}. */
static int cell_parse_exit(struct repl *r, const struct frame *f, int *exit_code)
{
	json_t *obj = json_loadb((const char *)f->payload, f->len, 0, NULL);
	json_t *v = json_object_get(obj, "exit_code");
	json_int_t n = json_integer_value(v);
	int rc = json_is_integer(v) && n >= 0 && n <= 255 ? 0 : -EINVAL;

	*exit_code = (int)n;
	r->quiet = json_is_true(json_object_get(obj, "quiet"));
	json_decref(obj);
	return rc;
}

/* EVENT, or a piece of one. */
static enum cell_took cell_take_event(struct repl_cell *c, const struct frame *f)
{
	bool last = f->type == FRAME_EVENT || f->len == 0;

	if (!c->stream)
		return CELL_TOOK;
	if (!c->event_skip && stream_room(c->stream) == 0) {
		if (!exec_must_end(c->end.stop))
			return CELL_NO_ROOM;
		/* Dropped as output is, and counted: whole, not in pieces. */
		cell_drop_event(c);
		c->event_skip = true;
	}
	if (c->event_skip) {
		c->end.dropped += f->len;
	} else {
		stream_put(c->stream, f->type, f->payload, f->len);
		stream_flush(c->stream);
		c->event_open = !last;
		c->event_passed = last ? 0 : c->event_passed + f->len;
	}
	if (last)
		c->event_skip = false;
	return CELL_TOOK;
}

enum cell_took cell_take_frame(struct repl *r, const struct frame *f)
{
	struct repl_cell *c = r->cell;
	int exit_code;

	if (!c)
		return CELL_TOOK;
	if (f->type != FRAME_EXIT)
		return cell_take_event(c, f);
	if (cell_parse_exit(r, f, &exit_code) < 0)
		repl_kill(r, "it sent an EXIT that is not valid");
	else
		return cell_ends(r, exit_code);
	return CELL_TOOK;
}

void cell_refuse_waiting(struct repl *r, const struct err *err)
{
	alarm_cancel(&r->busy_timer);
	list_for_each_safe (c, &r->waiting, struct repl_cell, link) {
		stream_fail(c->stream, err);
		cell_free(c);
	}
}
