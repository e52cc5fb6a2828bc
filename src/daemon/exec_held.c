/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What execs hold of the account (held.h): code and stdin until the agent has them,
 * and events that came in parts until the client has them. What is held beside
 * is bounded for each by its own.
 */
#include "daemon/exec_impl.h"
#include "daemon/limits.h"
#include "daemon/reply.h"
#include "lib/wipe.h"

#include <stdio.h>
#include <stdlib.h>

void exec_params_drop_texts(struct exec_params *p)
{
	json_decref(p->code_text);
	json_decref(p->stdin_text);
	wipe_free(p->stdin_own);
	p->code_text = p->stdin_text = NULL;
	p->stdin_own = NULL;
}

void exec_params_free(struct exec_params *p)
{
	exec_params_drop_texts(p);
	wipe_free(p->head);
}

int exec_hold_texts(struct exec *e)
{
	size_t n = e->p.code_len + e->p.stdin_len + e->p.head_len;
	int rc;

	if (n <= LIMIT_HELD_SMALL)
		return 0;
	rc = held_take(e->held, n);
	if (rc == 0)
		e->held_texts = n;
	return rc;
}

void exec_drop_texts(struct exec *e)
{
	held_give(e->held, e->held_texts);
	e->held_texts = 0;
	exec_params_drop_texts(&e->p);
}

int exec_hold_event(struct exec *e, size_t len)
{
	int rc = held_take(e->held, len);

	if (rc == 0)
		e->held_events += len;
	return rc;
}

void exec_held_settle(struct exec *e)
{
	size_t now = buf_len(&e->parts) + ndjson_size(&e->out) + buf_len(&e->in.text);

	if (now >= e->held_events)
		return;
	held_give(e->held, e->held_events - now);
	e->held_events = now;
}

void exec_held_leave(struct exec *e)
{
	exec_drop_texts(e);
	exec_held_settle(e);
	e->held = held_leave(e->held, e->held_events);
}

void exec_refuse_held(struct request *r, int error)
{
	char text[128];

	if (error == -ENOSPC) {
		reply_overloaded(r);
		return;
	}
	snprintf(text, sizeof(text),
		 "the commands that wait in this sandbox would have more than %u MiB together",
		 LIMIT_HELD >> 20);
	reply_error(r, 429, "too_many_requests", text,
		    "wait for earlier ones to end, or put large data in a file of the sandbox",
		    NULL);
}

void exec_held_failure(struct agent_failure *why, int error)
{
	if (error == -ENOSPC) {
		*why = (struct agent_failure){.status = 503, .code = "overloaded"};
		snprintf(why->message, sizeof(why->message),
			 "podflared holds as much for its clients as it may");
		return;
	}
	*why = (struct agent_failure){.status = 502, .code = "agent_error"};
	snprintf(why->message, sizeof(why->message),
		 "results of this sandbox that wait for their clients, or for their end, have more "
		 "than %u MiB together",
		 LIMIT_HELD >> 20);
}
