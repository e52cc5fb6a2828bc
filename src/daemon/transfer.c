/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The beginning, the failures and the end of a transfer; what lies between them
 * is in api_files.c and api_file_list.c.
 */
#include "daemon/transfer.h"
#include "daemon/daemon.h"
#include "daemon/limits.h"
#include "daemon/probe.h"
#include "daemon/query.h"
#include "daemon/reply.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

char *transfer_path(struct request *r)
{
	char *path = NULL;
	int rc = query_get(r->query, "path", &path);

	if (rc == -ENOENT || (rc == 0 && !*path))
		reply_invalid(r, "path", "path is missing");
	else if (rc == -EEXIST)
		reply_invalid(r, "path", "path is given more than once");
	else if (rc == -EINVAL)
		reply_invalid(r, "path",
			      "path is not valid: a broken escape, a NUL character, or "
			      "not UTF-8");
	else if (rc < 0)
		reply_json(r, 500, NULL);
	else if (strlen(path) > LIMIT_PATH)
		reply_invalid(r, "path", "path is longer than %u bytes", LIMIT_PATH);
	else
		return path;
	free(path);
	return NULL;
}

void transfer_fail(struct transfer *t, const struct agent_failure *why)
{
	agent_close(t->s);
	t->s = NULL;
	if (t->begun) {
		t->cut = true;
		http_wake(t->r);
		return;
	}
	reply_error(t->r, why->status, why->code, why->message, NULL, why->field);
}

void transfer_lost(struct transfer *t, int error)
{
	struct agent_failure why = {.status = 502, .code = "agent_error"};

	if (!t->sb || sandbox_is_ending(t->sb))
		return; /* transfer_on_sandbox_end() brings the reason */
	snprintf(why.message, sizeof(why.message), "%s", agent_error_text(error));
	transfer_fail(t, &why);
	probe_start(t->sb);
}

static void transfer_on_sandbox_end(struct sandbox_user *u, const char *reason)
{
	struct transfer *t = u->arg;
	bool over = !t->s;

	t->sb = NULL;
	if (over)
		return; /* all that it had to say has been said */
	agent_close(t->s);
	t->s = NULL;
	t->len = 0;
	if (t->begun) {
		t->cut = true;
		http_wake(t->r);
	} else {
		reply_ended(t->r, reason);
	}
}

void transfer_done(struct transfer *t)
{
	agent_release(t->s);
	t->s = NULL;
}

void transfer_end(struct transfer *t)
{
	struct frame f;

	/* A download that was taken whole has its END still in the stream. */
	if (t->s && t->begun && !t->len && agent_next(t->s, &f) == 1 && f.type == FRAME_END_OUT)
		agent_release(t->s);
	else
		agent_close(t->s);
	sandbox_drop_user(&t->user);
	free(t);
}

struct transfer *transfer_begin(struct request *r, struct sandbox *sb, uint8_t type, json_t *object,
				size_t size, agent_stream_fn *fn, const struct request_ops *ops)
{
	_cleanup_free char *text = json_text(object);
	struct transfer *t = text ? calloc(1, size) : NULL;
	struct err err = {0};

	json_decref(object);
	if (!t) {
		reply_json(r, 500, NULL);
		return NULL;
	}
	t->s = agent_open(&sb->agent, fn, t, &err);
	if (!t->s) {
		free(t);
		reply_no_stream(r, &err);
		return NULL;
	}
	t->r = r;
	t->sb = sb;
	sandbox_add_user(sb, &t->user, transfer_on_sandbox_end, t);
	r->ops = ops;
	r->state = t;
	agent_send(t->s, type, text, strlen(text));
	return t;
}
