/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One command. Life: start, then the end of its first process (reap), then, if
 * it was made to end, that of all others, then the drain of what it wrote, then
 * EXIT. The job outlives its stream when the peer goes away: then it only waits
 * for the end of what it has killed; and when its end had to be told before it had died.
 *
 * Deadline: SIGINT, SIGTERM and SIGKILL, a step apart; after another one EXIT (exec.h).
 */
#define _GNU_SOURCE
#include "agent/command_impl.h"
#include "agent/output.h"
#include "agent/spawn.h"
#include "agent/stream.h"
#include "agent/terminal.h"
#include "lib/io.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void command_free(struct command *c)
{
	alarm_cancel(&c->alarm);
	alarm_cancel(&c->last);
	feed_close(&c->own_feed);
	output_abandon(c->output);
	cgroup_release(&c->agent->cgroups, c->cgroup);
	free(c->cwd);
	free(c);
}

/* It has been killed and does not die: all of it goes but what waits for that. */
static void command_linger(struct command *c)
{
	c->told = true;
	c->stream = NULL;
	c->owner = (struct command_owner){0};
	c->feed = NULL;
	alarm_cancel(&c->alarm);
	alarm_cancel(&c->last);
	feed_close(&c->own_feed);
	output_abandon(c->output);
	c->output = NULL;
}

static void command_notice(const struct command *c, const char *text)
{
	stream_put_json(c->stream, FRAME_EVENT,
			json_pack("{s:s, s:s}", "type", "notice", "text", text));
}

static void command_end(struct command *c)
{
	struct command_owner owner = c->owner;
	struct exec_end end = c->end;

	if (c->child.pid)
		command_linger(c);
	else
		command_free(c);
	if (owner.ended)
		owner.ended(owner.arg, &end);
}

static void command_on_drained(struct output *o)
{
	struct command *c = o->arg;
	struct stream *s = c->stream;

	c->end.oom = cgroup_oom_kills(c->cgroup) > 0;
	if (s) {
		if (c->end.oom)
			command_notice(c, "The sandbox ran out of memory: the kernel ended a "
					  "process of this command.");
		if (c->undead)
			command_notice(c, EXEC_UNDEAD);
		stream_final(s, FRAME_EXIT, exec_exit_object(&c->end, c->output));
	}
	command_end(c);
}

/* Everything is dead that has to be, or has been waited for long enough. */
static void command_on_dead(void *arg)
{
	struct command *c = arg;

	c->over = true;
	cgroup_stop_waiting(c->cgroup);
	/* The deadline of one that has ended by itself is now that of its output. */
	if (exec_must_end(c->end.stop))
		alarm_cancel(&c->alarm);
	output_end(c->output, command_on_drained, c);
}

static void command_must_end(struct command *c, enum exec_stop stop)
{
	if (exec_must_end(c->end.stop))
		return;
	c->end.stop = stop;
	alarm_set(&c->last, EXEC_TELL_STEPS * c->step_ns);
}

static void command_on_reaped(struct reap_child *child, int wstatus)
{
	struct command *c = child->arg;

	child->pid = 0;
	if (c->told) {
		command_free(c);
		return;
	}
	if (output_is_over(c->output))
		command_must_end(c, EXEC_OVER_LIMIT);
	exec_end_from_wait(&c->end, wstatus);
	if (!exec_must_end(c->end.stop)) {
		command_on_dead(c);
		return;
	}
	cgroup_kill(c->cgroup);
	alarm_cancel(&c->alarm);
	cgroup_when_empty(&c->agent->cgroups, c->cgroup, command_on_dead, c);
}

static void command_kill(struct command *c)
{
	alarm_cancel(&c->alarm);
	cgroup_kill(c->cgroup);
	/* Also the session, for the case without cgroups; its id cannot be reused before the reap.
	 */
	if (c->child.pid)
		spawn_signal(c->child.pid, SIGKILL);
}

/* Nothing is awaited any longer. */
static void command_on_last(void *arg)
{
	struct command *c = arg;
	bool over = c->over;

	output_hurry(c->output); /* this ends the job when its reader was all that it waited for */
	if (over)
		return;
	c->undead = true;
	if (c->child.pid)
		c->end.exit_code = 128 + SIGKILL;
	command_on_dead(c);
}

/* The deadline, and the steps after it. */
static void command_on_alarm(void *arg)
{
	struct command *c = arg;

	if (c->over) {
		alarm_set(&c->last, EXEC_TELL_STEPS * c->step_ns);
		return;
	}
	command_must_end(c, c->too_much ? EXEC_OVER_LIMIT : EXEC_TIMED_OUT);
	switch (c->step++) {
	case 0:
		spawn_signal(c->child.pid, SIGINT);
		break;
	case 1:
		spawn_signal(c->child.pid, SIGTERM);
		spawn_signal(c->child.pid, SIGCONT); /* one that is stopped would not see it */
		break;
	default:
		command_kill(c);
		return;
	}
	alarm_set(&c->alarm, c->step_ns);
	/* It may hang in a write that nobody reads. */
	output_set_lossy(c->output);
}

/* It is read just now: what follows from it comes next. */
static void command_on_limit(void *arg)
{
	struct command *c = arg;

	c->too_much = true;
	if (!c->over && !exec_must_end(c->end.stop))
		alarm_set(&c->alarm, 1);
}

void command_interrupt(struct command *c)
{
	if (exec_must_end(c->end.stop) || !c->child.pid)
		return;
	c->end.stop = EXEC_INTERRUPTED;
	spawn_signal(c->child.pid, SIGINT);
}

static void command_on_interrupt(struct stream *s, void *job)
{
	(void)s;
	command_interrupt(job);
}

/* Ends it by force; the end is told if anybody is there to hear it. */
void command_cancel(struct command *c)
{
	if (exec_must_end(c->end.stop) && !c->child.pid)
		return; /* it is over, and what it left is being waited for */
	command_must_end(c, EXEC_CANCELLED);
	command_kill(c);
}

static void command_on_cancel(struct stream *s, void *job)
{
	struct command *c = job;

	(void)s;
	command_cancel(c);
	/* Last: when the drain was only waiting for room, this ends the job. */
	if (c->over)
		output_hurry(c->output);
	else
		output_set_lossy(c->output);
}

static void command_on_room(struct stream *s, void *job)
{
	struct command *c = job;

	(void)s;
	feed_on_room(&c->own_feed);
	output_resume(c->output); /* last: it may end the job */
}

static int command_on_input(struct stream *s, void *job, const uint8_t *p, size_t len)
{
	struct command *c = job;

	(void)s;
	return feed_put(&c->own_feed, p, len);
}

static int command_on_input_end(struct stream *s, void *job)
{
	struct command *c = job;

	(void)s;
	return feed_end(&c->own_feed);
}

static void command_on_gone(void *job)
{
	struct command *c = job;

	c->stream = NULL;
	feed_close(&c->own_feed);
	command_cancel(c);
	output_discard(c->output);
}

static void command_on_detach(void *job)
{
	struct command *c = job;

	c->stream = NULL;
	feed_close(&c->own_feed);
	output_discard(c->output);
}

static const struct stream_ops command_ops = {
	.input = command_on_input,
	.input_end = command_on_input_end,
	.cancel = command_on_cancel,
	.interrupt = command_on_interrupt,
	.room = command_on_room,
	.gone = command_on_gone,
	.detach = command_on_detach,
};

static struct command *command_new(struct agent *a)
{
	struct command *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->agent = a;
	c->child = (struct reap_child){.fn = command_on_reaped, .arg = c};
	alarm_init(&c->alarm, a, command_on_alarm, c);
	alarm_init(&c->last, a, command_on_last, c);
	return c;
}

void command_start(struct stream *s, const struct request_exec *r, struct code *code)
{
	_cleanup_fd int code_fd = code->fd;
	struct command *c = command_new(s->agent);
	struct err err;

	if (!c) {
		stream_error(s, ENOMEM, "cannot start a command: out of memory");
		return;
	}
	if (r->input) {
		c->feed = &c->own_feed;
		feed_init(c->feed, c->agent, s);
	}
	if (command_launch(c, r, &(struct code){.fd = code_fd, .size = code->size}, &err) < 0) {
		stream_fail(s, &err);
		command_free(c);
		return;
	}
	c->stream = s;
	stream_set_job(s, &command_ops, c);
	output_begin(c->output, s,
		     &(struct output_limit){.bytes = (uint64_t)r->output_limit,
					    .over = r->end_at_limit ? command_on_limit : NULL,
					    .arg = c});
}

struct command *command_start_kept(struct agent *a, const struct request_exec *r,
				   const struct code *code, const struct command_owner *owner,
				   struct err *err)
{
	struct command *c = command_new(a);

	if (!c) {
		err_set(err, ENOMEM, "cannot start a command");
		return NULL;
	}
	c->owner = *owner;
	c->feed = owner->feed;
	if (command_launch(c, r, code, err) < 0) {
		command_free(c);
		return NULL;
	}
	output_keep(c->output, owner->logs, owner->logged, owner->arg);
	return c;
}

pid_t command_pid(const struct command *c)
{
	return c->child.pid;
}

char *command_take_cwd(struct command *c)
{
	return take_ptr(c->cwd);
}

int command_signal(const struct command *c, int sig, bool group)
{
	/* A process that waits to be reaped has its number still. */
	if (!c->child.pid)
		return -ESRCH;
	if (group)
		return spawn_signal(c->child.pid, sig);
	return kill(c->child.pid, sig) < 0 ? -errno : 0;
}

void command_resize(const struct command *c, const struct terminal_size *size)
{
	int master = output_terminal(c->output);

	if (master >= 0)
		terminal_resize(master, size);
}
