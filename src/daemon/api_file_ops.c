/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is done with files without their content: stat, mkdir, remove, rename,
 * chmod. Each is one question to the agent.
 */
#include "daemon/api.h"
#include "daemon/ask.h"
#include "daemon/fields.h"
#include "daemon/file_entry.h"
#include "daemon/reply.h"
#include "daemon/transfer.h"

#include <string.h>

static bool stat_ok(struct request *r, const json_t *answer)
{
	json_t *entry = file_entry_json(answer);

	if (entry)
		reply_json(r, 200, entry);
	return entry != NULL;
}

static bool mkdir_ok(struct request *r, const json_t *answer)
{
	json_t *created = json_object_get(answer, "created");

	if (json_is_boolean(created))
		reply_json(r, 200, json_pack("{s:O}", "created", created));
	return json_is_boolean(created);
}

static bool done_ok(struct request *r, const json_t *answer)
{
	(void)answer;
	reply_empty(r);
	return true;
}

static const struct ask_ops stat_ops = {.ok = stat_ok};
static const struct ask_ops mkdir_ops = {.ok = mkdir_ok};
static const struct ask_ops done_ops = {.ok = done_ok};

void api_file_stat(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);
	_cleanup_free char *path = sb ? transfer_path(r) : NULL;

	if (path)
		ask_agent(r, sb, FRAME_FILE, json_pack("{s:s, s:s}", "op", "stat", "path", path),
			  &stat_ops);
}

/* Checks the members of all operations; of one there are those of `known`. */
static bool file_fields(struct request *r, const json_t *body, const char *const *known,
			const char *need)
{
	const char *path = NULL, *to = NULL;
	json_int_t mode = -1;
	bool flag;

	if (!fields_only(r, body, known) || !fields_path(r, body, "path", &path) ||
	    !fields_path(r, body, "to", &to) || !fields_int(r, body, "mode", 0, 07777, &mode) ||
	    !fields_bool(r, body, "parents", &flag) || !fields_bool(r, body, "recursive", &flag) ||
	    !fields_bool(r, body, "overwrite", &flag))
		return false;
	if (path && (!need || (strcmp(need, "to") == 0 ? to != NULL : mode >= 0)))
		return true;
	reply_invalid(r, path ? need : "path", "%s is missing", path ? need : "path");
	return false;
}

/* The body as the agent's request, without what is null. NULL: answered, or no memory. */
static json_t *file_object(struct request *r, const char *op, const char *const *known,
			   const char *need)
{
	json_t *body = fields_parse(r, false), *out = NULL, *v;

	if (body && file_fields(r, body, known, need))
		out = json_pack("{s:s}", "op", op);
	for (size_t i = 0; out && known[i]; i++) {
		v = json_object_get(body, known[i]);
		if (v && !json_is_null(v) && json_object_set(out, known[i], v) < 0) {
			json_decref(out);
			out = NULL;
		}
	}
	json_decref(body);
	return out;
}

/* need: the member that must be there beside path, or NULL. */
static void file_op(struct request *r, const char *op, const char *const *known, const char *need,
		    const struct ask_ops *ops)
{
	struct sandbox *sb = api_find_sandbox(r);
	json_t *o = sb ? file_object(r, op, known, need) : NULL;

	if (o)
		ask_agent(r, sb, FRAME_FILE, o, ops);
	else if (!r->reply)
		reply_json(r, 500, NULL);
}

void api_file_mkdir(struct request *r)
{
	static const char *const known[] = {"path", "mode", "parents", NULL};

	file_op(r, "mkdir", known, NULL, &mkdir_ops);
}

void api_file_remove(struct request *r)
{
	static const char *const known[] = {"path", "recursive", NULL};

	file_op(r, "remove", known, NULL, &done_ops);
}

void api_file_rename(struct request *r)
{
	static const char *const known[] = {"path", "to", "overwrite", NULL};

	file_op(r, "rename", known, "to", &done_ops);
}

void api_file_chmod(struct request *r)
{
	static const char *const known[] = {"path", "mode", NULL};

	file_op(r, "chmod", known, "mode", &done_ops);
}
