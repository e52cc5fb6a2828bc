/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Execs by their ids: looking for one, interrupting it, listing those that
 * live. Of those that have ended a sandbox remembers the last ids.
 */
#include "daemon/daemon.h"
#include "daemon/exec_impl.h"
#include "daemon/limits.h"

#include <string.h>

struct past {
	struct list link; /* sb->past, oldest first */
	char id[EXEC_ID_MAX + 1];
};

struct exec *exec_find(struct sandbox *sb, const char *id)
{
	list_for_each (e, &sb->execs, struct exec, link)
		if (strcmp(e->p.id, id) == 0)
			return e;
	return NULL;
}

static struct past *past_find(struct sandbox *sb, const char *id)
{
	list_for_each (p, &sb->past, struct past, link)
		if (strcmp(p->id, id) == 0)
			return p;
	return NULL;
}

void exec_remember(struct exec *e)
{
	struct sandbox *sb = e->sb;
	struct past *p = past_find(sb, e->p.id);

	if (!p && sb->npast == LIMIT_EXEC_PAST) {
		p = list_entry(sb->past.next, struct past, link);
	} else if (!p) {
		p = malloc(sizeof(*p));
		if (!p)
			return; /* it will be unknown, no worse */
		list_init(&p->link);
		sb->npast++;
	}
	list_del(&p->link);
	memcpy(p->id, e->p.id, sizeof(p->id));
	list_add_tail(&sb->past, &p->link);
}

void exec_forget_all(struct sandbox *sb)
{
	list_for_each_safe (p, &sb->past, struct past, link) {
		list_del(&p->link);
		free(p);
	}
	sb->npast = 0;
}

enum exec_found exec_interrupt(struct sandbox *sb, const char *id, bool escalate)
{
	struct exec *e = exec_find(sb, id);

	if (!e)
		return past_find(sb, id) ? EXEC_HAS_ENDED : EXEC_UNKNOWN;
	if (e->state == EXEC_QUEUED) {
		exec_leave_queue(e);
		return EXEC_IS_QUEUED;
	}
	if (escalate) {
		exec_cancel(e, "interrupted");
		exec_watch_cancelled(e);
	} else {
		exec_give_order(e, ORDER_INTERRUPT);
	}
	return EXEC_IS_RUNNING;
}

/* Seconds, without a fraction where there is none. */
static json_t *seconds(uint64_t ms)
{
	return ms % 1000 ? json_real((double)ms / 1000) : json_integer((json_int_t)(ms / 1000));
}

static json_t *exec_json(const struct exec *e)
{
	json_t *started = e->started_ms ? json_integer(e->started_ms) : json_null();

	return json_pack("{s:s, s:s, s:s, s:s, s:I, s:o, s:o}", "exec_id", e->p.id, "state",
			 e->state == EXEC_QUEUED ? "queued" : "running", "language", e->p.language,
			 "context_id", e->p.context, "queued_at", (json_int_t)e->queued_ms,
			 "started_at", started, "timeout", seconds(e->p.timeout_ms));
}

json_t *exec_list(struct sandbox *sb)
{
	json_t *all = json_array();

	list_for_each (e, &sb->execs, struct exec, link) {
		if (json_array_append_new(all, exec_json(e)) < 0) {
			json_decref(all);
			return NULL;
		}
	}
	return all ? json_pack("{s:o}", "execs", all) : NULL;
}
