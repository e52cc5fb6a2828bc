/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON of CONTEXT, and names of contexts.
 */
#include "agent/request_parse.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int request_id(json_t *obj, const char *key, bool required, char **out, struct err *err)
{
	static const char letters[] =
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
	int rc = request_string(obj, key, required, out, err);
	size_t n = *out ? strlen(*out) : 1;

	if (rc == 0 && (n < 1 || n > REQUEST_ID_MAX || (*out && strspn(*out, letters) != n)))
		rc = err_text(err, EINVAL, "\"%s\" must be 1 to %d letters, digits, _ and -", key,
			      REQUEST_ID_MAX);
	return rc;
}

int request_user(json_t *obj, bool *given, bool *root, struct err *err)
{
	json_t *v = json_object_get(obj, "user");
	const char *name = json_string_value(v);

	*given = v != NULL;
	*root = name && strcmp(name, "root") == 0;
	if (v && !*root && (!name || strcmp(name, "user") != 0))
		return err_text(err, EINVAL, "\"user\" must be \"user\" or \"root\"");
	return 0;
}

static int parse_op(json_t *obj, enum request_context_op *op, struct err *err)
{
	static const char *const names[] = {"list", "create", "restart", "delete"};
	int i = request_word(obj, "op", names, ARRAY_SIZE(names), err);

	if (i < 0)
		return i;
	*op = (enum request_context_op)i;
	return 0;
}

/* What only a new context has. */
static int parse_new(json_t *obj, struct request_context *r, struct err *err)
{
	json_t *v = json_object_get(obj, "language");
	const char *language = json_string_value(v);
	bool given;
	int rc;

	if (v && (!language || strcmp(language, "python") != 0))
		return err_text(err, EINVAL, "\"language\" of a context must be \"python\"");
	rc = request_path(obj, "cwd", false, &r->cwd, err);
	return rc < 0 ? rc : request_user(obj, &given, &r->root, err);
}

int request_parse_context(const void *p, size_t len, struct request_context *r, struct err *err)
{
	json_t *obj = NULL;
	int rc;

	*r = (struct request_context){0};
	rc = request_object(p, len, &obj, err);
	if (rc < 0)
		return rc;
	rc = parse_op(obj, &r->op, err);
	if (rc == 0 && r->op != CONTEXT_LIST)
		rc = request_id(obj, "id", true, &r->id, err);
	if (rc == 0 && r->op == CONTEXT_CREATE)
		rc = parse_new(obj, r, err);
	json_decref(obj);
	if (rc < 0)
		request_context_free(r);
	return rc;
}

void request_context_free(struct request_context *r)
{
	free(r->id);
	free(r->cwd);
	*r = (struct request_context){0};
}
