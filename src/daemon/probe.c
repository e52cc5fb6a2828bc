/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One question at a time and sandbox. Whatever frame comes back shows that an
 * agent runs there; what it says does not matter.
 */
#include "daemon/probe.h"
#include "daemon/daemon.h"
#include "daemon/sandbox.h"

#include <errno.h>
#include <stdlib.h>

struct probe {
	struct sandbox *sb;
	struct sandbox_user user;
	struct agent_stream *s;
	struct loop_timer limit;
};

static void probe_free(struct probe *p)
{
	p->sb->probe = NULL;
	loop_timer_cancel(&p->limit);
	sandbox_drop_user(&p->user);
	free(p);
}

static void probe_failed(struct probe *p, const char *why)
{
	struct sandbox *sb = p->sb;

	agent_close(p->s);
	probe_free(p);
	sandbox_end(sb, false, "a connection broke, and %s", why);
}

static void probe_on_sandbox_end(struct sandbox_user *u, const char *reason)
{
	struct probe *p = u->arg;

	(void)reason;
	agent_close(p->s);
	probe_free(p);
}

static void probe_on_stream(struct agent_stream *s)
{
	struct probe *p = s->user;
	struct frame f;
	int rc = agent_next(s, &f);

	if (rc == 0)
		return;
	if (rc == 1) {
		agent_release(s);
		probe_free(p);
	} else if (rc == -ENOMEM) {
		agent_close(s); /* ours, and nothing about the guest */
		probe_free(p);
	} else if (!sandbox_is_ending(p->sb)) {
		probe_failed(p, agent_error_text(rc));
	}
}

static void probe_on_limit(struct loop_timer *t)
{
	probe_failed(t->arg, "the guest does not answer any more");
}

void probe_start(struct sandbox *sb)
{
	uint32_t limit = sb->d->config.pong_within_s;
	struct probe *p;
	struct err err;

	if (sb->state != SANDBOX_READY || sb->probe || !(p = calloc(1, sizeof(*p))))
		return;
	p->s = agent_open_new(&sb->agent, probe_on_stream, p, &err);
	if (!p->s) {
		free(p); /* the host has no room for it: that says nothing about the guest */
		return;
	}
	sb->probe = p;
	p->sb = sb;
	p->limit = (struct loop_timer){.fn = probe_on_limit, .arg = p};
	loop_timer_set(&sb->d->loop, &p->limit,
		       (limit < LIMIT_PROBE_S ? limit : LIMIT_PROBE_S) * SECOND_NS);
	sandbox_add_user(sb, &p->user, probe_on_sandbox_end, p);
	agent_send(p->s, FRAME_PING, "podflare", 8);
}
