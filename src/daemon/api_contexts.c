/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Contexts: Python sessions of their own in one sandbox. The agent keeps them; the
 * host keeps only a queue for each name that is used (exec.c).
 */
#include "daemon/api.h"
#include "daemon/ask.h"
#include "daemon/exec.h"
#include "daemon/fields.h"
#include "daemon/limits.h"
#include "daemon/reply.h"

#include <stdio.h>
#include <string.h>

/* As many as an agent may name; it keeps 8. */
#define CONTEXTS_MAX 64u
/* A path whose bytes may have become U+FFFD, and a few words behind it. */
#define CONTEXT_CWD_MAX (3 * LIMIT_PATH + 64)

static bool is_one_of(const json_t *v, const char *const *words)
{
	const char *s = json_string_value(v);

	while (s && *words && strcmp(s, *words) != 0)
		words++;
	return s && *words;
}

/* A context of the agent's as that of the API. New reference, NULL when it is not one. */
static json_t *context_json(const json_t *c)
{
	static const char *const states[] = {"starting", "ready", "busy", "absent", NULL};
	static const char *const users[] = {"user", "root", NULL};
	static const char *const languages[] = {"python", NULL};
	json_t *id = json_object_get(c, "id"), *cwd = json_object_get(c, "cwd");
	json_t *state = json_object_get(c, "state"), *user = json_object_get(c, "user");
	json_t *language = json_object_get(c, "language");

	if (!json_is_string(id) || !ids_name_valid(json_string_value(id)) || !json_is_string(cwd) ||
	    json_string_length(cwd) > CONTEXT_CWD_MAX || !is_one_of(state, states) ||
	    !is_one_of(user, users) || !is_one_of(language, languages))
		return NULL;
	return json_pack("{s:O, s:O, s:O, s:O, s:O}", "context_id", id, "language", language,
			 "state", state, "cwd", cwd, "user", user);
}

static bool one_ok(struct request *r, const json_t *answer)
{
	json_t *c = context_json(answer);

	if (c)
		reply_json(r, 200, c);
	return c != NULL;
}

static bool list_ok(struct request *r, const json_t *answer)
{
	const json_t *contexts = json_object_get(answer, "contexts"), *c;
	json_t *all = json_array();
	size_t i;

	if (!all || !json_is_array(contexts) || json_array_size(contexts) > CONTEXTS_MAX) {
		json_decref(all);
		return false;
	}
	json_array_foreach(contexts, i, c)
	{
		if (json_array_append_new(all, context_json(c)) < 0) {
			json_decref(all);
			return false;
		}
	}
	reply_json(r, 200, json_pack("{s:o}", "contexts", all));
	return true;
}

static bool delete_ok(struct request *r, const json_t *answer)
{
	(void)answer;
	reply_empty(r);
	return true;
}

/* Its path is the directory that it starts in. */
static void create_refused(struct agent_failure *why)
{
	if (agent_failure_is(why, "exists")) {
		why->code = "context_exists";
		why->field = "context_id";
	} else if (agent_failure_is(why, "too_many")) {
		why->code = "too_many_contexts";
	} else if (why->field) {
		why->status = 400;
		why->code = "invalid_request";
		why->field = "cwd";
	}
}

static void one_refused(struct agent_failure *why)
{
	if (agent_failure_is(why, "not_found")) {
		why->code = "context_not_found";
		why->field = NULL;
	}
}

static const struct ask_ops create_ops = {one_ok, create_refused};
static const struct ask_ops list_ops = {list_ok, NULL};
static const struct ask_ops restart_ops = {one_ok, one_refused};
static const struct ask_ops delete_ops = {delete_ok, one_refused};

struct context_body {
	const char *id, *language, *cwd, *user;
};

static bool context_fields(struct request *r, const json_t *body, struct context_body *b)
{
	static const char *const known[] = {"context_id", "language", "cwd", "user", NULL};

	if (!fields_only(r, body, known) || !fields_string(r, body, "context_id", &b->id, NULL) ||
	    !fields_string(r, body, "language", &b->language, NULL) ||
	    !fields_path(r, body, "cwd", &b->cwd) || !fields_user(r, body, "user", &b->user))
		return false;
	if (b->id && !ids_name_valid(b->id)) {
		reply_invalid(r, "context_id",
			      "context_id must be 1 to 64 of A-Z, a-z, 0-9, _ and -");
		return false;
	}
	if (strcmp(b->language, "python") != 0) {
		reply_invalid(r, "language", "contexts are of python; \"%.64s\" has none",
			      b->language);
		return false;
	}
	return true;
}

void api_context_create(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);
	json_t *body = sb ? fields_parse(r, true) : NULL;
	struct context_body b = {.language = "python"};
	char made[32] = "ctx_";

	if (!body)
		return;
	ids_random_hex(made + 4, 12);
	if (context_fields(r, body, &b))
		ask_agent(r, sb, FRAME_CONTEXT,
			  json_pack("{s:s, s:s, s:s, s:s*, s:s*}", "op", "create", "id",
				    b.id ? b.id : made, "language", b.language, "cwd", b.cwd,
				    "user", b.user),
			  &create_ops);
	json_decref(body);
}

void api_context_list(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);

	if (sb)
		ask_agent(r, sb, FRAME_CONTEXT, json_pack("{s:s}", "op", "list"), &list_ops);
}

static void context_ask(struct request *r, struct sandbox *sb, const char *op,
			const struct ask_ops *ops)
{
	if (!ids_name_valid(r->match.other))
		reply_error(r, 404, "context_not_found", "no such context", NULL, NULL);
	else
		ask_agent(r, sb, FRAME_CONTEXT,
			  json_pack("{s:s, s:s}", "op", op, "id", r->match.other), ops);
}

void api_context_restart(struct request *r)
{
	static const char *const known[] = {NULL};
	struct sandbox *sb = api_find_sandbox(r);
	json_t *body = sb ? fields_parse(r, true) : NULL;

	if (body && fields_only(r, body, known))
		context_ask(r, sb, "restart", &restart_ops);
	json_decref(body);
}

void api_context_delete(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);

	if (!sb)
		return;
	if (strcmp(r->match.other, "default") == 0)
		reply_invalid(r, "context_id", "the context \"default\" cannot be deleted");
	else
		context_ask(r, sb, "delete", &delete_ops);
}
