/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Type-checked access to a request body. Strict parsing: duplicate members,
 * ill-formed UTF-8, trailing text and numbers out of range are errors.
 */
#include "daemon/fields.h"
#include "daemon/limits.h"
#include "daemon/reply.h"
#include "lib/json_safe.h"
#include "proto/frame.h"

#include <stdio.h>
#include <string.h>

bool fields_few(struct request *r)
{
	if (json_few_values((const char *)buf_data(&r->body), buf_len(&r->body), LIMIT_JSON_VALUES))
		return true;
	reply_invalid(r, "body", "the body has more than %u values", LIMIT_JSON_VALUES);
	return false;
}

json_t *fields_parse(struct request *r, bool empty_ok)
{
	const char *text = (const char *)buf_data(&r->body);
	size_t len = buf_len(&r->body);
	json_error_t e;
	json_t *obj;

	if (len == 0 && empty_ok) {
		obj = json_object();
		if (!obj)
			reply_json(r, 500, NULL);
		return obj;
	}
	if (!fields_few(r))
		return NULL;
	/* NUL is let through here so that the answer can name the field that has it. */
	obj = json_safe_loadb(text ? text : "", len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
	if (!obj && json_safe_lacked()) {
		reply_json(r, 500, NULL);
		return NULL;
	}
	if (!obj) {
		char *near = strstr(e.text, " near ");

		/* A piece of the body, which may be of a secret. */
		if (near)
			*near = '\0';
		reply_invalid(r, "body", "the body is not valid JSON: line %d, column %d: %s",
			      e.line, e.column, e.text);
		return NULL;
	}
	if (!json_is_object(obj)) {
		json_decref(obj);
		reply_invalid(r, "body", "the body must be a JSON object");
		return NULL;
	}
	return obj;
}

/* Member by name; absent and null are NULL. */
static json_t *fields_get(const json_t *obj, const char *name)
{
	json_t *v = json_object_get(obj, name);

	return json_is_null(v) ? NULL : v;
}

bool fields_only(struct request *r, const json_t *obj, const char *const *names)
{
	char known[256] = "", unknown[65];
	const char *key;
	size_t n = 0;
	json_t *v;

	json_object_foreach((json_t *)(uintptr_t)obj, key, v)
	{
		const char *const *name = names;

		while (*name && strcmp(*name, key) != 0)
			name++;
		if (*name)
			continue;
		for (name = names; *name && n < sizeof(known); name++)
			n += (size_t)snprintf(known + n, sizeof(known) - n, "%s%s", n ? ", " : "",
					      *name);
		snprintf(unknown, sizeof(unknown), "%s", key);
		reply_invalid(r, unknown, "\"%s\" is not known here; there are: %s", unknown,
			      known);
		return false;
	}
	return true;
}

bool fields_string(struct request *r, const json_t *obj, const char *name, const char **out,
		   size_t *len)
{
	const json_t *v = fields_get(obj, name);

	if (!v)
		return true;
	if (!json_is_string(v)) {
		reply_invalid(r, name, "%s must be a string", name);
		return false;
	}
	if (strlen(json_string_value(v)) != json_string_length(v)) {
		reply_invalid(r, name, "%s must not contain NUL characters", name);
		return false;
	}
	*out = json_string_value(v);
	if (len)
		*len = json_string_length(v);
	return true;
}

bool fields_path(struct request *r, const json_t *obj, const char *name, const char **out)
{
	size_t len = 1;

	if (!fields_string(r, obj, name, out, &len))
		return false;
	if (len >= 1 && len <= LIMIT_PATH)
		return true;
	reply_invalid(r, name, "%s must be a path of 1 to %u bytes", name, LIMIT_PATH);
	return false;
}

bool fields_user(struct request *r, const json_t *obj, const char *name, const char **out)
{
	if (!fields_string(r, obj, name, out, NULL))
		return false;
	if (!*out || strcmp(*out, "user") == 0 || strcmp(*out, "root") == 0)
		return true;
	reply_invalid(r, name, "%s must be \"user\" or \"root\"", name);
	return false;
}

bool fields_bool(struct request *r, const json_t *obj, const char *name, bool *out)
{
	const json_t *v = fields_get(obj, name);

	if (!v)
		return true;
	if (!json_is_boolean(v)) {
		reply_invalid(r, name, "%s must be true or false", name);
		return false;
	}
	*out = json_is_true(v);
	return true;
}

bool fields_int(struct request *r, const json_t *obj, const char *name, json_int_t min,
		json_int_t max, json_int_t *out)
{
	const json_t *v = fields_get(obj, name);

	if (!v)
		return true;
	if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max) {
		reply_invalid(r, name,
			      "%s must be an integer from %" JSON_INTEGER_FORMAT
			      " to %" JSON_INTEGER_FORMAT,
			      name, min, max);
		return false;
	}
	*out = json_integer_value(v);
	return true;
}

bool fields_number(struct request *r, const json_t *obj, const char *name, double max, double *out)
{
	const json_t *v = fields_get(obj, name);

	if (!v)
		return true;
	if (!json_is_number(v) || json_number_value(v) < 0 || json_number_value(v) > max) {
		reply_invalid(r, name, "%s must be a number from 0 to %.0f", name, max);
		return false;
	}
	*out = json_number_value(v);
	return true;
}

/* A string that a program can be given. */
static bool plain_string(const json_t *v)
{
	return json_is_string(v) && strlen(json_string_value(v)) == json_string_length(v);
}

bool fields_array(struct request *r, const json_t *obj, const char *name, size_t max,
		  size_t max_bytes, json_t **out)
{
	json_t *array = fields_get(obj, name), *v;
	size_t i, bytes = 0;

	if (!array)
		return true;
	if (!json_is_array(array) || json_array_size(array) > max) {
		reply_invalid(r, name, "%s must be an array of at most %zu strings", name, max);
		return false;
	}
	json_array_foreach(array, i, v)
	{
		if (!plain_string(v)) {
			reply_invalid(r, name, "%s: element %zu must be a string without NUL", name,
				      i);
			return false;
		}
		bytes += json_string_length(v);
	}
	if (bytes > max_bytes) {
		reply_invalid(r, name, "%s is larger than %zu bytes", name, max_bytes);
		return false;
	}
	*out = array;
	return true;
}

bool fields_map(struct request *r, const json_t *obj, const char *name, size_t max,
		size_t max_bytes, json_t **out)
{
	json_t *map = fields_get(obj, name), *v;
	size_t bytes = 0;
	const char *key;

	if (!map)
		return true;
	if (!json_is_object(map)) {
		reply_invalid(r, name, "%s must be an object of strings", name);
		return false;
	}
	if (json_object_size(map) > max) {
		reply_invalid(r, name, "%s has more than %zu members", name, max);
		return false;
	}
	json_object_foreach(map, key, v)
	{
		if (!plain_string(v)) {
			reply_invalid(r, name, "%s: \"%.64s\" must be a string without NUL", name,
				      key);
			return false;
		}
		bytes += strlen(key) + json_string_length(v);
	}
	if (bytes > max_bytes) {
		reply_invalid(r, name, "%s is larger than %zu bytes", name, max_bytes);
		return false;
	}
	*out = map;
	return true;
}

bool fields_env(struct request *r, const json_t *obj, const char *name, json_t **out)
{
	const char *key;
	json_t *v;

	if (!fields_map(r, obj, name, LIMIT_ENV, FRAME_PAYLOAD_MAX / 2, out))
		return false;
	json_object_foreach(*out, key, v)
	{
		if (!*key || strchr(key, '=')) {
			reply_invalid(r, name, "%s: \"%.64s\" is not a name of a variable", name,
				      key);
			return false;
		}
	}
	return true;
}

bool fields_size_is(struct request *r, const json_t *obj, json_int_t *cols, json_int_t *rows)
{
	static const char *const known[] = {"cols", "rows", NULL};

	*cols = *rows = 0;
	if (!fields_only(r, obj, known) || !fields_int(r, obj, "cols", 1, LIMIT_TERMINAL, cols) ||
	    !fields_int(r, obj, "rows", 1, LIMIT_TERMINAL, rows))
		return false;
	if (*cols && *rows)
		return true;
	reply_invalid(r, *cols ? "rows" : "cols", "%s is missing", *cols ? "rows" : "cols");
	return false;
}

bool fields_size(struct request *r, const json_t *obj, const char *name, const json_t **out)
{
	const json_t *v = fields_get(obj, name);
	json_int_t cols, rows;

	if (!v)
		return true;
	if (!json_is_object(v)) {
		reply_invalid(r, name, "%s must be an object with cols and rows", name);
		return false;
	}
	*out = v;
	return fields_size_is(r, v, &cols, &rows);
}
