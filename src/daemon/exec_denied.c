/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What was denied to a sandbox while commands ran. A guest does not say which of its
 * programs opens a connection: it belongs to the command that runs then, and to none
 * when there are several. What is denied on such a one, or on one of a command that
 * has ended, counts for all that run.
 */
#include "daemon/egress/record.h"
#include "daemon/exec_impl.h"
#include "daemon/limits.h"

#include <string.h>

const char *exec_only_running(struct sandbox *sb)
{
	const char *id = NULL;

	list_for_each (e, &sb->execs, struct exec, link) {
		if (e->state != EXEC_RUNNING)
			continue;
		if (id)
			return NULL;
		id = e->p.id;
	}
	return id;
}

static bool is_same(const json_t *entry, const struct record *r)
{
	return json_integer_value(json_object_get(entry, "port")) == r->port &&
	       strcmp(json_string_value(json_object_get(entry, "reason")),
		      egress_reason_text(r->reason)) == 0 &&
	       json_equal(json_object_get(entry, "host"), r->host);
}

/* Without memory it is only in the log. */
static void note(struct exec *e, const struct record *r)
{
	json_t *entry;
	size_t i;

	if (!e->denied)
		e->denied = json_array();
	json_array_foreach(e->denied, i, entry)
	{
		json_t *count = json_object_get(entry, "count");

		if (!is_same(entry, r))
			continue;
		json_integer_set(count, json_integer_value(count) + 1);
		return;
	}
	if (json_array_size(e->denied) == LIMIT_DENIED)
		return;
	json_array_append_new(e->denied,
			      json_pack("{s:O, s:I, s:s, s:s, s:i}", "host", r->host, "port",
					r->port, "reason", egress_reason_text(r->reason), "hint",
					r->hint, "count", 1));
}

void exec_denied(struct sandbox *sb, const struct record *r)
{
	struct exec *own = r->exec ? exec_find(sb, r->exec) : NULL;

	if (own && own->state == EXEC_RUNNING) {
		note(own, r);
		return;
	}
	list_for_each (e, &sb->execs, struct exec, link)
		if (e->state == EXEC_RUNNING)
			note(e, r);
}
