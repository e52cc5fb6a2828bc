/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON of EXEC.
 */
#define _GNU_SOURCE
#include "agent/request_parse.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REQUEST_ENV_MAX          1024
#define REQUEST_OUTPUT_LIMIT     ((int64_t)16 << 20)
#define REQUEST_OUTPUT_LIMIT_MAX ((int64_t)1 << 30)
/* Ten days: whoever wants more wants none. */
#define REQUEST_TIMEOUT_MAX ((int64_t)10 * 24 * 3600 * 1000)
#define REQUEST_GRACE       2000
#define REQUEST_GRACE_MIN   200
#define REQUEST_GRACE_MAX   ((int64_t)3600 * 1000)

static int parse_language(json_t *obj, enum request_language *out, struct err *err)
{
	static const char *const names[] = {"python", "bash", "javascript", "argv"};
	int i = request_word(obj, "language", names, ARRAY_SIZE(names), err);

	if (i < 0)
		return i;
	*out = (enum request_language)i;
	return 0;
}

static int parse_argv(json_t *obj, struct request_exec *r, struct err *err)
{
	json_t *list = json_object_get(obj, "argv"), *v;
	size_t i;

	if (r->language != LANGUAGE_ARGV)
		return list ? err_text(err, EINVAL, "\"argv\" is for language \"argv\"") : 0;
	if (!json_is_array(list) || json_array_size(list) == 0)
		return err_text(err, EINVAL, "\"argv\" must be a list of strings, not empty");
	r->argv = calloc(json_array_size(list) + 1, sizeof(*r->argv));
	if (!r->argv)
		return err_set(err, ENOMEM, "cannot take \"argv\"");
	json_array_foreach(list, i, v)
	{
		if (!json_is_string(v) || (i == 0 && *json_string_value(v) == '\0'))
			return err_text(err, EINVAL,
					"\"argv\" must hold strings, the first of them not empty");
		r->argv[i] = strdup(json_string_value(v));
		if (!r->argv[i])
			return err_set(err, ENOMEM, "cannot take \"argv\"");
	}
	return 0;
}

static int parse_env(json_t *obj, struct request_exec *r, struct err *err)
{
	json_t *env = json_object_get(obj, "env"), *v;
	const char *key;

	if (!env)
		return 0;
	if (!json_is_object(env))
		return err_text(err, EINVAL, "\"env\" must be an object");
	if (json_object_size(env) > REQUEST_ENV_MAX)
		return err_text(err, E2BIG, "\"env\" has more than %d members", REQUEST_ENV_MAX);
	r->env = calloc(json_object_size(env) + 1, sizeof(*r->env));
	if (!r->env)
		return err_set(err, ENOMEM, "cannot take \"env\"");
	json_object_foreach(env, key, v)
	{
		if (*key == '\0' || strchr(key, '='))
			return err_text(err, EINVAL,
					"\"env\" has a name that is empty or holds '='");
		if (!json_is_string(v))
			return err_text(err, EINVAL, "\"env\" has a value that is not a string");
		if (asprintf(&r->env[r->nenv], "%s=%s", key, json_string_value(v)) < 0)
			return err_set(err, ENOMEM, "cannot take \"env\"");
		r->nenv++;
	}
	return 0;
}

static int parse_limit_action(json_t *obj, struct request_exec *r, struct err *err)
{
	json_t *v = json_object_get(obj, "output_limit_action");
	const char *word = json_string_value(v);

	if (!v || (word && strcmp(word, "truncate") == 0))
		return 0;
	r->end_at_limit = word && strcmp(word, "end") == 0;
	if (r->end_at_limit)
		return 0;
	return err_text(err, EINVAL, "\"output_limit_action\" must be \"truncate\" or \"end\"");
}

static int parse_keep(json_t *obj, struct request_exec *r, struct err *err)
{
	json_t *pty = json_object_get(obj, "pty");
	int rc = request_id(obj, "keep", false, &r->keep, err);

	if (rc == 0 && r->keep && r->language == LANGUAGE_PYTHON)
		rc = err_text(err, EINVAL, "\"keep\" is for commands, not for Python");
	if (rc == 0 && pty && !r->keep)
		rc = err_text(err, EINVAL, "\"pty\" is for commands with \"keep\"");
	if (rc == 0 && pty && !json_is_object(pty))
		rc = err_text(err, EINVAL, "\"pty\" must be an object");
	if (rc == 0 && pty)
		rc = request_terminal_size(pty, &r->terminal, err);
	return rc;
}

int request_parse_exec(const void *p, size_t len, struct request_exec *r, struct err *err)
{
	json_t *obj = NULL;
	int rc;

	*r = (struct request_exec){.output_limit = REQUEST_OUTPUT_LIMIT, .grace_ms = REQUEST_GRACE};
	rc = request_object(p, len, &obj, err);
	if (rc < 0)
		return rc;
	rc = parse_language(obj, &r->language, err);
	if (rc == 0)
		rc = parse_argv(obj, r, err);
	if (rc == 0)
		rc = request_user(obj, &r->has_user, &r->root, err);
	if (rc == 0)
		rc = request_id(obj, "context", false, &r->context, err);
	if (rc == 0)
		rc = request_boolean(obj, "stdin", &r->input, err);
	if (rc == 0)
		rc = request_path(obj, "cwd", false, &r->cwd, err);
	if (rc == 0)
		rc = parse_env(obj, r, err);
	if (rc == 0)
		rc = request_integer(obj, "timeout_ms", 0, REQUEST_TIMEOUT_MAX, &r->timeout_ms,
				     err);
	if (rc == 0)
		rc = request_integer(obj, "grace_ms", REQUEST_GRACE_MIN, REQUEST_GRACE_MAX,
				     &r->grace_ms, err);
	if (rc == 0)
		rc = request_integer(obj, "output_limit", 0, REQUEST_OUTPUT_LIMIT_MAX,
				     &r->output_limit, err);
	if (rc == 0)
		rc = parse_limit_action(obj, r, err);
	if (rc == 0)
		rc = parse_keep(obj, r, err);
	json_decref(obj);
	if (rc < 0)
		request_exec_free(r);
	return rc;
}

void request_exec_free(struct request_exec *r)
{
	for (size_t i = 0; i < r->nenv; i++)
		free(r->env[i]);
	for (size_t i = 0; r->argv && r->argv[i]; i++)
		free(r->argv[i]);
	free(r->argv);
	free(r->env);
	free(r->cwd);
	free(r->context);
	free(r->keep);
	*r = (struct request_exec){0};
}
