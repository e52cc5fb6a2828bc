/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Execs. An exec belongs to its sandbox while it is queued or runs (list
 * sb->execs; the first of a context runs, or is about to), and to its request
 * until that ends: it is freed when both have let go.
 *
 * Invariant of back-pressure: while the event lines are full (ndjson_full),
 * frames are not taken from the stream; taking goes on from pull().
 */
#include "daemon/exec.h"
#include "daemon/agent_failure.h"
#include "daemon/daemon.h"
#include "daemon/egress/egress.h"
#include "daemon/exec_impl.h"
#include "daemon/limits.h"
#include "daemon/probe.h"
#include "daemon/reply.h"
#include "lib/io.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static void exec_next(struct sandbox *sb, const char *context);
static void exec_pump(struct exec *e);

int64_t exec_now_ms(void)
{
	return (int64_t)(io_realtime_ns() / 1000000);
}

static void exec_unref(struct exec *e)
{
	if (e->req || e->state != EXEC_DONE)
		return;
	loop_timer_cancel(&e->grace);
	ndjson_free(&e->out);
	exec_held_settle(e);
	exec_params_free(&e->p);
	json_decref(e->denied);
	/* Callers up the stack may still look at its state. */
	loop_defer_free(e->loop, e);
}

/* The reply begins: 200 and event lines. */
static void exec_begin_reply(struct exec *e)
{
	const char *const headers[] = {"Podflare-Exec-Id", e->p.id, NULL};

	loop_timer_cancel(&e->grace);
	if (!e->begun && e->req)
		http_reply_stream(e->req, 200, "application/x-ndjson", -1, headers);
	e->begun = true;
}

/* The reply to what is over before any of it was sent: one piece, where chunks would be three. */
static void exec_reply_whole(struct exec *e)
{
	const char *const headers[] = {"Podflare-Exec-Id", e->p.id, NULL};

	loop_timer_cancel(&e->grace);
	e->begun = true;
	http_reply_whole(e->req, 200, "application/x-ndjson", buf_data(&e->out.out),
			 buf_len(&e->out.out), headers);
}

/* There may be something for pull(). */
static void exec_wake(struct exec *e)
{
	if (!e->req)
		return;
	if (e->state == EXEC_DONE && !e->begun && !e->broken && ndjson_whole(&e->out) &&
	    buf_len(&e->out.out) <= NDJSON_HIGH)
		exec_reply_whole(e);
	else if (e->heard || e->state == EXEC_DONE)
		exec_begin_reply(e);
	http_wake(e->req);
}

void exec_finish(struct exec *e)
{
	struct sandbox *sb = e->sb;

	e->state = EXEC_DONE;
	e->s = NULL;
	held_give_place(&e->place);
	exec_pending_free(&e->in); /* it may point into the stream */
	buf_free(&e->parts);
	exec_held_leave(e);
	exec_watch_stop(e);
	sandbox_drop_user(&e->user);
	list_del(&e->link);
	sb->nexecs--;
	exec_remember(e);
	if (sb->state == SANDBOX_READY)
		exec_next(sb, e->p.context);
	exec_wake(e);
	exec_unref(e);
}

/* Events of an end that is not the command's own. */
static void exec_failed(struct exec *e, const char *text, const char *reason, const char *state)
{
	int64_t now = exec_now_ms(), took = e->started_ms ? now - e->started_ms : 0;
	struct exec_exit x = {
		.code = -1, .reason = reason, .state = state, .duration_ms = took < 0 ? 0 : took};

	egress_drain(e->sb);
	x.denied = e->denied;
	if (e->overdue) {
		/* Its time is over, whatever became of the guest; what else it wrote is not known.
		 */
		x.code = 124;
		x.reason = "timeout";
		x.truncated = true;
	}
	if (exec_events_failed(&e->out, text, &x, now) < 0)
		e->broken = true;
}

void exec_fail(struct exec *e, const struct agent_failure *why, const char *reason,
	       const char *state)
{
	agent_close(e->s);
	if (e->req && !e->begun && !e->heard) {
		loop_timer_cancel(&e->grace);
		e->begun = true;
		reply_error(e->req, why->status, why->code, why->message, NULL, why->field);
	} else {
		exec_failed(e, why->message, reason, state);
	}
	exec_finish(e);
}

void exec_lost(struct exec *e, int error)
{
	struct agent_failure why = {.status = 502, .code = "agent_error"};
	struct sandbox *sb = e->sb;

	/* When the VM has ended, exec_on_sandbox_end() brings the reason. */
	if (sandbox_is_ending(e->sb) || e->state == EXEC_DONE)
		return;
	snprintf(why.message, sizeof(why.message), "%s while the command ran",
		 agent_error_text(error));
	exec_fail(e, &why, "agent_error", NULL);
	probe_start(sb);
}

/* --- the stream -------------------------------------------------------------------------- */

/* Output that waits goes into lines. False: they are full, the client sets the pace. */
static bool exec_room(struct exec *e)
{
	if (!e->req || e->broken) {
		exec_pending_free(&e->in);
		return true;
	}
	if (exec_pending_any(&e->in) && exec_pending_take(&e->in, &e->out, exec_now_ms()) < 0) {
		e->broken = true;
		exec_pending_free(&e->in);
	}
	return !exec_pending_any(&e->in) && !ndjson_full(&e->out);
}

/* Moves output on: from the stream into event lines, until either has nothing more. */
static void exec_pump(struct exec *e)
{
	struct frame f;
	int rc;

	while (e->state == EXEC_RUNNING) {
		e->paused = !exec_room(e);
		if (e->paused) {
			exec_watch_pause(e);
			break;
		}
		exec_watch_go_on(e);
		rc = agent_next(e->s, &f);
		if (rc == 0)
			break;
		if (rc < 0) {
			exec_lost(e, rc);
			break;
		}
		exec_watch_heard(e);
		if (!exec_frame(e, &f))
			return;
	}
	if (e->state == EXEC_RUNNING && !loop_timer_armed(&e->silence) && !e->paused)
		exec_watch_heard(e);
	exec_wake(e);
}

static void exec_on_stream(struct agent_stream *s)
{
	struct exec *e = s->user;

	exec_feed(e);
	exec_pump(e);
}

/* --- the queue --------------------------------------------------------------------------- */

/* Its stream. NULL: there is none for it. */
static struct agent_stream *exec_open(struct exec *e, struct err *err)
{
	struct daemon *d = e->sb->d;
	struct held *h = owners_part(&d->owners, d->owners.execs, e->sb->owner, &d->execs);
	struct agent_stream *s;

	/* A command has its stream until its guest has ended it, also when its client has left. */
	if (held_take(h, 1) < 0) {
		err_text(err, EBUSY, "too many commands run: as many as there may be connections%s",
			 h == &d->execs ? "" : ", or half as many of this key");
		return NULL;
	}
	e->place = h;
	s = agent_open(&e->sb->agent, exec_on_stream, e, err);
	/* It may be tried again. */
	if (!s)
		held_give_place(&e->place);
	return s;
}

static void exec_run(struct exec *e)
{
	struct agent_failure why = {.status = 503, .code = "sandbox_unreachable"};
	struct err err = {0};

	e->s = exec_open(e, &err);
	if (!e->s) {
		if (sandbox_is_ending(e->sb))
			return;
		if (err.num == EBUSY) {
			why.status = 429;
			why.code = "too_many_requests";
		}
		snprintf(why.message, sizeof(why.message), "%s", err.msg);
		exec_fail(e, &why, "refused", "preserved");
		return;
	}
	egress_drain(e->sb); /* what was before is not its own */
	e->state = EXEC_RUNNING;
	sandbox_begin_call(e->sb);
	e->started_ms = exec_now_ms();
	e->sb->exec_count++;
	if (exec_events_started(&e->out, e->p.id, (int64_t)e->sb->d->config.exec_slack_s * 1000,
				e->started_ms) < 0)
		e->broken = true;
	agent_cork(e->s);
	agent_send(e->s, FRAME_EXEC, e->p.head, e->p.head_len);
	exec_watch_start(e);
	exec_feed(e);
	agent_uncork(e->s);
	/* Alone it does not begin the reply: a refusal may still be an HTTP error. */
	if (e->begun)
		exec_wake(e);
}

static void exec_next(struct sandbox *sb, const char *context)
{
	list_for_each (e, &sb->execs, struct exec, link) {
		if (strcmp(e->p.context, context) != 0)
			continue;
		if (e->state == EXEC_QUEUED)
			exec_run(e);
		return; /* the list may be another one now */
	}
}

void exec_leave_queue(struct exec *e)
{
	struct exec_exit x = {.code = 130, .reason = "interrupted", .state = "preserved"};

	if (exec_events_exit(&e->out, &x, exec_now_ms()) < 0)
		e->broken = true;
	exec_finish(e);
}

void exec_refuse_queued(struct exec *e)
{
	char text[128];

	snprintf(text, sizeof(text),
		 "other code of this context runs: it was not its turn within %g s, and it was not "
		 "run",
		 e->p.queue_s);
	exec_begin_reply(e);
	exec_failed(e, text, "refused", "preserved");
	exec_finish(e);
}

static void exec_on_sandbox_end(struct sandbox_user *u, const char *reason)
{
	struct exec *e = u->arg;

	/* What the command wrote before the end is still in the stream. */
	if (e->state == EXEC_RUNNING) {
		exec_pump(e);
		if (e->state == EXEC_DONE)
			return; /* it had come to its own end */
		exec_begin_reply(e);
	}
	agent_close(e->s);
	if (e->req && !e->begun) {
		loop_timer_cancel(&e->grace);
		e->begun = true;
		reply_ended(e->req, reason);
	} else {
		char text[1500];

		snprintf(text, sizeof(text), "sandbox ended: %s", reason);
		exec_failed(e, text, e->sb->closed ? "closed" : "vm_ended", "lost");
	}
	exec_finish(e);
}

void exec_disk_failed(struct sandbox *sb, int errnum)
{
	char text[160];

	snprintf(text, sizeof(text), "the host could not read or write the sandbox's disk: %s",
		 strerror(errnum));
	list_for_each (e, &sb->execs, struct exec, link) {
		/* Once a command: the guest repeats what fails. */
		if (e->state != EXEC_RUNNING || e->disk_told || !e->req)
			continue;
		e->disk_told = e->heard = true;
		if (exec_events_notice(&e->out, text, exec_now_ms()) < 0)
			e->broken = true;
		exec_wake(e);
	}
}

/* --- the client's side ------------------------------------------------------------------- */

static ssize_t exec_pull(struct request *r, char *out, size_t max)
{
	struct exec *e = r->state;
	ssize_t n;

	if (ndjson_low(&e->out) && e->state == EXEC_RUNNING && e->paused)
		exec_pump(e);
	n = e->broken ? -ENOMEM : ndjson_take(&e->out, out, max);
	if (n < 0)
		return PULL_ABORT;
	if (n == 0)
		return e->state == EXEC_DONE ? PULL_END : PULL_WAIT;
	exec_held_settle(e);
	return n;
}

static void exec_end(struct request *r)
{
	struct exec *e = r->state;

	e->req = NULL;
	loop_timer_cancel(&e->grace);
	if (e->state == EXEC_QUEUED) {
		exec_finish(e);
		return;
	}
	if (e->state == EXEC_DONE) {
		exec_unref(e);
		return;
	}
	/* Nothing runs before the code is there whole; afterwards its end is awaited. */
	if (!e->end_sent) {
		agent_close(e->s);
		exec_finish(e);
		return;
	}
	buf_free(&e->parts);
	ndjson_free(&e->out);
	exec_held_settle(e);
	exec_cancel(e, "interrupted");
	exec_watch_cancelled(e);
	exec_pump(e);
}

static const struct request_ops exec_ops = {.pull = exec_pull, .end = exec_end};

static void exec_on_grace(struct loop_timer *t)
{
	exec_begin_reply(t->arg);
}

static struct exec *exec_new(struct sandbox *sb, struct request *r, const struct exec_params *p)
{
	struct exec *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->loop = &sb->d->loop;
	e->sb = sb;
	e->req = r;
	e->p = *p;
	e->held = &sb->held;
	e->queued_ms = exec_now_ms();
	ndjson_init(&e->out, p->rich);
	buf_init(&e->parts, LIMIT_EVENT);
	exec_watch_init(e);
	e->grace = (struct loop_timer){.fn = exec_on_grace, .arg = e};
	return e;
}

void exec_submit(struct sandbox *sb, struct request *r, struct exec_params *p)
{
	struct exec *e;
	int rc;

	if (exec_find(sb, p->id)) {
		reply_error(r, 409, "exec_exists", "a command with this exec_id is queued or runs",
			    NULL, "exec_id");
		exec_params_free(p);
		return;
	}
	if (sb->nexecs >= LIMIT_EXEC_QUEUE) {
		reply_error(r, 429, "too_many_requests", "too many commands wait in this sandbox",
			    "wait for earlier ones to end", NULL);
		exec_params_free(p);
		return;
	}
	e = exec_new(sb, r, p);
	if (!e) {
		reply_json(r, 500, NULL);
		exec_params_free(p);
		return;
	}
	rc = exec_hold_texts(e);
	if (rc < 0) {
		exec_refuse_held(r, rc);
		exec_params_free(p);
		free(e);
		return;
	}
	r->ops = &exec_ops;
	r->state = e;
	sandbox_add_user(sb, &e->user, exec_on_sandbox_end, e);
	list_add_tail(&sb->execs, &e->link);
	sb->nexecs++;
	loop_timer_set(e->loop, &e->grace, EXEC_HEADER_GRACE_NS);
	exec_watch_queued(e);
	exec_next(sb, e->p.context);
}
