/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The list of contexts and the requests about them, which are all answered at
 * once: what takes time, goes on behind the answer.
 */
#include "agent/contexts.h"
#include "agent/agent.h"
#include "agent/cell.h"
#include "agent/path.h"
#include "agent/stream.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONTEXTS_DEFAULT "default"

void contexts_init(struct agent *a, const char *script)
{
	list_init(&a->contexts);
	a->ncontexts = 1;
	repl_init(&a->repl, a, script, CONTEXTS_DEFAULT);
	list_add_tail(&a->contexts, &a->repl.link);
}

static struct repl *context_named(struct agent *a, const char *id)
{
	list_for_each (r, &a->contexts, struct repl, link)
		if (strcmp(r->id, id) == 0)
			return r;
	return NULL;
}

struct repl *contexts_find(struct agent *a, const char *id)
{
	return id ? context_named(a, id) : &a->repl;
}

static json_t *context_object(const struct repl *r, const char *state)
{
	char cwd[PATH_MAX];

	path_of_session(r->agent, r, cwd);
	return json_pack("{s:s, s:s, s:s, s:o, s:s}", "id", r->id, "language", "python", "state",
			 state, "cwd", stream_text(cwd), "user", r->root ? "root" : "user");
}

static void contexts_list(struct stream *s)
{
	json_t *list = json_array();

	list_for_each (r, &s->agent->contexts, struct repl, link)
		json_array_append_new(list, context_object(r, repl_state_name(r)));
	stream_final(s, FRAME_OK, json_pack("{s:o}", "contexts", list));
}

/* The directory in which its sessions start: NULL when that is to be the home. */
static int context_directory(struct agent *a, const struct request_context *q, char **out,
			     struct err *err)
{
	_cleanup_fd int fd = -1;
	char path[PATH_MAX];
	int rc;

	*out = NULL;
	if (!q->cwd)
		return 0;
	rc = path_absolute(a, &a->repl, q->cwd, path, err);
	if (rc == 0)
		rc = path_open_dir(a, &a->repl, q->root ? &a->root : &a->user, path, &fd, err);
	if (rc < 0)
		return rc;
	*out = strdup(path);
	return *out ? 0 : err_text(err, ENOMEM, "out of memory");
}

/* NULL with err filled when it cannot be made. */
static struct repl *context_create(struct agent *a, const struct request_context *q,
				   struct err *err)
{
	_cleanup_free char *dir = NULL;
	struct repl *r = NULL;

	if (context_named(a, q->id))
		err_text(err, EEXIST, "there is a context of this name already");
	else if (a->ncontexts >= CONTEXTS_MAX)
		err_text(err, EMFILE, "there are %d contexts already", CONTEXTS_MAX);
	else if (q->root && !a->root.change)
		err_text(err, EPERM, "this agent cannot become root");
	else if (context_directory(a, q, &dir, err) == 0 && !(r = calloc(1, sizeof(*r))))
		err_text(err, ENOMEM, "out of memory");
	if (!r)
		return NULL;
	repl_init(r, a, a->repl.script, q->id);
	r->root = q->root;
	r->dir = take_ptr(dir);
	list_add_tail(&a->contexts, &r->link);
	a->ncontexts++;
	repl_start(r);
	return r;
}

static void contexts_create(struct stream *s, const struct request_context *q)
{
	struct err err = {0};
	struct repl *r = context_create(s->agent, q, &err);

	if (r)
		stream_final(s, FRAME_OK, context_object(r, repl_state_name(r)));
	else
		stream_fail(s, &err);
}

static void context_delete(struct repl *r)
{
	struct err err;

	list_del(&r->link);
	r->agent->ncontexts--;
	err_text(&err, ENOENT, "no such context");
	cell_refuse_waiting(r, &err);
	repl_end(r);
}

/* About one that is there: all but create and list. */
static void contexts_change(struct stream *s, struct repl *r, enum request_context_op op)
{
	json_t *answer;

	if (op == CONTEXT_RESTART) {
		repl_restart(r);
		stream_final(s, FRAME_OK, context_object(r, "starting"));
	} else if (r == &s->agent->repl) {
		stream_error(s, EINVAL, "the context \"%s\" cannot be deleted", CONTEXTS_DEFAULT);
	} else {
		answer = context_object(r, "absent");
		context_delete(r);
		stream_final(s, FRAME_OK, answer);
	}
}

void contexts_request(struct stream *s, const struct request_context *q)
{
	struct repl *r;

	if (q->op == CONTEXT_LIST) {
		contexts_list(s);
	} else if (q->op == CONTEXT_CREATE) {
		contexts_create(s, q);
	} else {
		r = context_named(s->agent, q->id);
		if (r)
			contexts_change(s, r, q->op);
		else
			stream_error(s, ENOENT, "no such context");
	}
}
