/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A command that does not end although it should, and a guest that does not
 * speak. The agent is asked to end a command at its timeout; this is for an
 * agent that does not do it: a cancel, then the end of the sandbox.
 *
 * A guest is not to blame for what it is kept from: while it is frozen for a
 * fork, and while the client does not take output, deadlines are put off. Nor
 * while the rest of much output still comes; that is bounded in bytes and in
 * time, as a guest may lie.
 */
#include "daemon/daemon.h"
#include "daemon/exec_impl.h"
#include "daemon/limits.h"
#include "daemon/probe.h"
#include "lib/io.h"

static void set_limit(struct exec *e, uint64_t ns)
{
	loop_timer_set(e->loop, &e->limit, ns);
}

static uint64_t slack_ns(const struct exec *e)
{
	return e->sb->d->config.exec_slack_s * SECOND_NS;
}

/* --- the deadline ------------------------------------------------------------------------ */

/* Whether the end may still be on its way. */
static bool exec_may_come(struct exec *e)
{
	uint64_t most = 2 * (e->p.output_limit + (uint64_t)LIMIT_EVENT);
	bool more = e->bytes > e->bytes_seen;

	e->bytes_seen = e->bytes;
	if (e->sb->agent.hold)
		return true;
	if (e->bytes - e->bytes_late > most)
		return false;
	if (e->paused) {
		probe_start(e->sb); /* on another stream: this one is not read */
		return true;
	}
	return more && e->late++ < LIMIT_LATE;
}

static void exec_on_limit(struct loop_timer *t)
{
	struct exec *e = t->arg;

	if (e->stage == STAGE_TIMEOUT) {
		e->stage = STAGE_SLACK;
		e->bytes_late = e->bytes_seen = e->bytes;
		set_limit(e, slack_ns(e));
		return;
	}
	if (exec_may_come(e)) {
		set_limit(e, slack_ns(e));
		return;
	}
	if (e->stage == STAGE_CANCELLED) {
		sandbox_end(e->sb, false, "guest does not answer");
		return;
	}
	e->stage = STAGE_CANCELLED;
	set_limit(e, slack_ns(e));
	exec_cancel(e, "timeout");
}

void exec_watch_start(struct exec *e)
{
	if (e->p.timeout_ms)
		set_limit(e, e->p.timeout_ms * 1000000ull);
	exec_watch_heard(e);
}

void exec_watch_cancelled(struct exec *e)
{
	const struct config *c = &e->sb->d->config;
	uint64_t ns = (uint64_t)(c->ping_after_s + c->pong_within_s) * SECOND_NS;

	if (e->stage == STAGE_CANCELLED)
		return;
	/* A deadline that comes sooner brings its own cancel, and the end. */
	if (loop_timer_armed(&e->limit) && e->limit.at_ns < io_now_ns() + ns)
		return;
	e->stage = STAGE_CANCELLED;
	e->bytes_late = e->bytes_seen = e->bytes;
	set_limit(e, ns);
}

/* --- silence ----------------------------------------------------------------------------- */

void exec_watch_heard(struct exec *e)
{
	e->pinged = false;
	loop_timer_set(e->loop, &e->silence, e->sb->d->config.ping_after_s * SECOND_NS);
}

void exec_watch_pause(struct exec *e)
{
	loop_timer_cancel(&e->silence);
}

static void exec_on_silence(struct loop_timer *t)
{
	struct exec *e = t->arg;

	if (e->sb->agent.hold) {
		/* Frozen for a fork: the agent answers this stream later. */
		exec_watch_heard(e);
		return;
	}
	if (e->pinged) {
		sandbox_end(e->sb, false, "guest does not answer");
		return;
	}
	e->pinged = true;
	agent_send(e->s, FRAME_PING, "podflare", 8);
	loop_timer_set(e->loop, &e->silence, e->sb->d->config.pong_within_s * SECOND_NS);
}

void exec_watch_init(struct exec *e)
{
	e->silence = (struct loop_timer){.fn = exec_on_silence, .arg = e};
	e->limit = (struct loop_timer){.fn = exec_on_limit, .arg = e};
}

void exec_watch_stop(struct exec *e)
{
	loop_timer_cancel(&e->silence);
	loop_timer_cancel(&e->limit);
}
