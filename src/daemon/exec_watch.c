/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A command that does not end although it should, and a guest that does not
 * speak. The agent is asked to end a command at its timeout; this is for an
 * agent that does not do it: a cancel, then the end of the sandbox.
 *
 * A guest is not to blame for what it is kept from: the time does not count in
 * which it is frozen for a fork, or the client does not take output, as long as
 * what comes is not more than an honest agent can have had to send.
 */
#include "daemon/daemon.h"
#include "daemon/exec_impl.h"
#include "daemon/limits.h"
#include "daemon/probe.h"
#include "lib/io.h"

/* What is not counted: the guest stood still, or its end may be there and was not read. */
static uint64_t excused_ns(const struct exec *e)
{
	uint64_t ns = agent_held_ns(&e->sb->agent);

	if (e->stage > STAGE_TIMEOUT)
		ns += e->paused_ns + (e->paused_at ? io_now_ns() - e->paused_at : 0);
	return ns;
}

static void set_limit(struct exec *e, uint64_t ns)
{
	e->excused_ns = excused_ns(e);
	loop_timer_set(e->loop, &e->limit, ns);
}

static uint64_t slack_ns(const struct exec *e)
{
	return e->sb->d->config.exec_slack_s * SECOND_NS;
}

/* --- the deadline ------------------------------------------------------------------------ */

/* Waits for as long again as was not counted since the limit was set. False: all was. */
static bool exec_excused(struct exec *e)
{
	uint64_t ns = excused_ns(e) - e->excused_ns;

	if (ns == 0)
		return false;
	/* A guest that only its client keeps from ending is another matter than one that floods. */
	if (e->stage != STAGE_TIMEOUT &&
	    e->bytes - e->bytes_late > 2 * (e->p.output_limit + (uint64_t)LIMIT_EVENT))
		return false;
	if (e->paused && e->stage == STAGE_OVERDUE)
		probe_start(e->sb); /* on another stream: this one is not read */
	if ((e->paused || e->sb->agent.hold) && ns < LATE_AGAIN_NS)
		ns = LATE_AGAIN_NS;
	set_limit(e, ns);
	return true;
}

static void exec_on_limit(struct loop_timer *t)
{
	struct exec *e = t->arg;

	if (e->stage != STAGE_QUEUED && exec_excused(e))
		return;
	switch (e->stage) {
	case STAGE_QUEUED:
		exec_refuse_queued(e);
		break;
	case STAGE_TIMEOUT:
		e->stage = STAGE_SLACK;
		e->bytes_late = e->bytes;
		set_limit(e, slack_ns(e) / 2);
		break;
	case STAGE_SLACK:
		e->stage = STAGE_OVERDUE;
		set_limit(e, slack_ns(e) / 2);
		exec_cancel(e, "timeout");
		break;
	case STAGE_OVERDUE:
		/* It answers its client on the way. */
		e->overdue = true;
		sandbox_end(e->sb, false, "guest does not answer");
		break;
	case STAGE_CANCELLED:
		sandbox_end(e->sb, false, "guest does not answer");
		break;
	}
}

void exec_watch_queued(struct exec *e)
{
	if (e->p.queue_s >= 0)
		set_limit(e, (uint64_t)(e->p.queue_s * 1e9));
}

void exec_watch_start(struct exec *e)
{
	loop_timer_cancel(&e->limit);
	e->stage = STAGE_TIMEOUT;
	if (e->p.timeout_ms)
		set_limit(e, e->p.timeout_ms * 1000000ull);
	exec_watch_heard(e);
}

void exec_watch_cancelled(struct exec *e)
{
	const struct config *c = &e->sb->d->config;
	uint64_t ns = (uint64_t)(c->ping_after_s + c->pong_within_s) * SECOND_NS;

	if (e->stage >= STAGE_OVERDUE)
		return;
	/* A deadline that comes sooner brings its own cancel, and the end. */
	if (loop_timer_armed(&e->limit) && e->limit.at_ns < io_now_ns() + ns)
		return;
	e->stage = STAGE_CANCELLED;
	e->bytes_late = e->bytes;
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
	if (!e->paused_at)
		e->paused_at = io_now_ns();
	loop_timer_cancel(&e->silence);
}

void exec_watch_go_on(struct exec *e)
{
	if (e->paused_at)
		e->paused_ns += io_now_ns() - e->paused_at;
	e->paused_at = 0;
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
