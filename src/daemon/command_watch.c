/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Invariants: the timer is set while there is something to wait for: the next
 * deadline, or an answer (s). Entries of commands that have ended by themselves
 * stay until the agent is asked the next time, which a full table brings about.
 */
#include "daemon/command_watch.h"
#include "daemon/agent_client.h"
#include "daemon/daemon.h"
#include "daemon/ids.h"
#include "daemon/limits.h"
#include "daemon/probe.h"
#include "daemon/sandbox.h"
#include "lib/io.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

struct watched {
	char id[IDS_NAME_MAX + 1];
	int64_t pid;
	uint64_t due_ns; /* on the guest's clock: the end of the slack */
};

struct command_watch {
	struct sandbox *sb;
	struct sandbox_user user;
	struct loop_timer timer;
	struct agent_stream *s; /* an answer is awaited */
	uint64_t asked_ns;      /* since then, on the guest's clock */
	unsigned int n;
	struct watched entry[LIMIT_WATCHED];
};

static void watch_ask(struct command_watch *w);

static uint64_t watch_slack_ns(const struct command_watch *w)
{
	return w->sb->d->config.exec_slack_s * SECOND_NS;
}

/* The guest's clock. */
static uint64_t watch_now_ns(const struct sandbox *sb)
{
	return io_now_ns() - agent_held_ns(&sb->agent);
}

/* Waits for what comes next. */
static void watch_set(struct command_watch *w)
{
	uint64_t now = watch_now_ns(w->sb), next = UINT64_MAX;

	if (w->s)
		next = w->asked_ns + watch_slack_ns(w);
	for (unsigned int i = 0; i < w->n && !w->s; i++)
		if (w->entry[i].due_ns < next)
			next = w->entry[i].due_ns;
	if (next == UINT64_MAX)
		loop_timer_cancel(&w->timer);
	else
		loop_timer_set(&w->sb->d->loop, &w->timer,
			       next > now + LATE_AGAIN_NS ? next - now : LATE_AGAIN_NS);
}

static void watch_drop(struct command_watch *w, unsigned int i)
{
	w->entry[i] = w->entry[--w->n];
}

/* --- asking ------------------------------------------------------------------------------ */

/* Whether the agent says that it runs. */
static bool watch_runs(const json_t *commands, const struct watched *e)
{
	const json_t *c;
	size_t i;

	json_array_foreach(commands, i, c)
	{
		const char *id = json_string_value(json_object_get(c, "id"));
		const char *state = json_string_value(json_object_get(c, "state"));

		if (id && state && strcmp(id, e->id) == 0 && strcmp(state, "running") == 0 &&
		    json_integer_value(json_object_get(c, "pid")) == e->pid)
			return true;
	}
	return false;
}

/* True: a command has outlived its time. */
static bool watch_sort(struct command_watch *w, const json_t *commands)
{
	uint64_t now = watch_now_ns(w->sb);
	bool late = false;

	for (unsigned int i = w->n; i > 0; i--) {
		if (!watch_runs(commands, &w->entry[i - 1]))
			watch_drop(w, i - 1);
		/* One may have come to its time while the agent was being asked for another. */
		else if (w->entry[i - 1].due_ns <= w->asked_ns && w->entry[i - 1].due_ns <= now)
			late = true;
	}
	return late;
}

static void watch_on_stream(struct agent_stream *s)
{
	struct command_watch *w = s->user;
	struct sandbox *sb = w->sb;
	json_t *answer, *commands;
	struct frame f;
	int rc = agent_next(s, &f);
	bool late;

	if (rc == 0)
		return;
	if (rc < 0 && sandbox_is_ending(sb))
		return;
	w->s = NULL;
	answer = rc == 1 && f.type == FRAME_OK
			 ? json_safe_load_few((const char *)f.payload, f.len, LIMIT_AGENT_LIST,
					      JSON_REJECT_DUPLICATES)
			 : NULL;
	commands = json_object_get(answer, "commands");
	if (!json_is_array(commands)) {
		/* Asked again after the slack, if the guest lives then. */
		json_decref(answer);
		agent_close(s);
		for (unsigned int i = 0; i < w->n; i++)
			if (w->entry[i].due_ns < watch_now_ns(sb) + watch_slack_ns(w))
				w->entry[i].due_ns = watch_now_ns(sb) + watch_slack_ns(w);
		watch_set(w);
		probe_start(sb);
		return;
	}
	late = watch_sort(w, commands);
	json_decref(answer);
	agent_release(s);
	watch_set(w);
	if (late)
		sandbox_end(sb, false, "a command did not end at its time limit");
}

static void watch_ask(struct command_watch *w)
{
	struct err err = {0};

	w->asked_ns = watch_now_ns(w->sb);
	w->s = agent_open(&w->sb->agent, watch_on_stream, w, &err);
	if (w->s)
		agent_send(w->s, FRAME_COMMAND, "{\"op\":\"list\"}", 13);
}

static void watch_on_timer(struct loop_timer *t)
{
	struct command_watch *w = t->arg;
	uint64_t now = watch_now_ns(w->sb);
	bool due = false;

	if (w->s && now >= w->asked_ns + watch_slack_ns(w)) {
		sandbox_end(w->sb, false, "guest does not answer");
		return;
	}
	for (unsigned int i = 0; i < w->n; i++)
		due |= w->entry[i].due_ns <= now;
	if (!w->s && due)
		watch_ask(w); /* without a free stream: again in a moment */
	watch_set(w);
}

/* --- life -------------------------------------------------------------------------------- */

static void watch_on_sandbox_end(struct sandbox_user *u, const char *reason)
{
	struct command_watch *w = u->arg;

	(void)reason;
	agent_close(w->s);
	loop_timer_cancel(&w->timer);
	w->sb->watch = NULL;
	loop_defer_free(&w->sb->d->loop, w);
}

static struct command_watch *watch_of(struct sandbox *sb)
{
	struct command_watch *w = sb->watch;

	if (w)
		return w;
	w = calloc(1, sizeof(*w));
	if (!w)
		return NULL;
	w->sb = sb;
	w->timer = (struct loop_timer){.fn = watch_on_timer, .arg = w};
	sandbox_add_user(sb, &w->user, watch_on_sandbox_end, w);
	sb->watch = w;
	return w;
}

void command_watch_add(struct sandbox *sb, const char *id, int64_t pid, uint64_t timeout_ms)
{
	struct command_watch *w = timeout_ms ? watch_of(sb) : NULL;
	struct watched *e;

	if (!w)
		return;
	if (w->n == LIMIT_WATCHED) /* more than an agent keeps: it does not tell the truth */
		return;
	e = &w->entry[w->n++];
	snprintf(e->id, sizeof(e->id), "%s", id);
	e->pid = pid;
	e->due_ns = watch_now_ns(sb) + timeout_ms * 1000000ull + watch_slack_ns(w);
	if (w->n > LIMIT_WATCHED / 2 && !w->s)
		watch_ask(w);
	watch_set(w);
}

void command_watch_copy(struct sandbox *sb, const struct sandbox *from)
{
	const struct command_watch *f = from->watch;
	struct command_watch *w = f && f->n ? watch_of(sb) : NULL;
	uint64_t now = watch_now_ns(from);

	if (!w)
		return;
	w->n = f->n;
	memcpy(w->entry, f->entry, f->n * sizeof(*f->entry));
	for (unsigned int i = 0; i < w->n; i++)
		w->entry[i].due_ns = f->entry[i].due_ns > now ? f->entry[i].due_ns - now : 0;
}

void command_watch_go(struct sandbox *sb)
{
	struct command_watch *w = sb->watch;

	if (!w)
		return;
	for (unsigned int i = 0; i < w->n; i++)
		w->entry[i].due_ns += watch_now_ns(sb);
	watch_set(w);
}
