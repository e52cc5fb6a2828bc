/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Members of request objects. Wrong types, missing members and values out of
 * range are refused with a sentence that names the member; members that are
 * not known are ignored, so that a newer host can add some.
 */
#define _GNU_SOURCE
#include "agent/request_parse.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int request_object(const void *p, size_t len, json_t **out, struct err *err)
{
	json_error_t je;
	json_t *obj = json_loadb(p, len, JSON_REJECT_DUPLICATES, &je);

	if (!obj)
		return err_text(err, EINVAL, "the request is not valid JSON: %s", je.text);
	if (!json_is_object(obj)) {
		json_decref(obj);
		return err_text(err, EINVAL, "the request is not a JSON object");
	}
	*out = obj;
	return 0;
}

/* Copies a string member; absent and not required leaves NULL. Strings hold no NUL (jansson). */
int request_string(json_t *obj, const char *key, bool required, char **out, struct err *err)
{
	json_t *v = json_object_get(obj, key);

	if (!v && !required)
		return 0;
	if (!json_is_string(v))
		return err_text(err, EINVAL, v ? "\"%s\" must be a string" : "\"%s\" is missing",
				key);
	*out = strdup(json_string_value(v));
	return *out ? 0 : err_set(err, ENOMEM, "cannot take \"%s\"", key);
}

int request_path(json_t *obj, const char *key, bool required, char **out, struct err *err)
{
	int rc = request_string(obj, key, required, out, err);

	if (rc < 0 || !*out)
		return rc;
	if (**out == '\0')
		return err_text(err, EINVAL, "\"%s\" must not be empty", key);
	if (strlen(*out) >= PATH_MAX)
		return err_text(err, ENAMETOOLONG, "\"%s\" is longer than %d bytes", key,
				PATH_MAX - 1);
	return 0;
}

int request_integer(json_t *obj, const char *key, int64_t min, int64_t max, int64_t *out,
		    struct err *err)
{
	json_t *v = json_object_get(obj, key);
	json_int_t n = json_integer_value(v);

	if (!v)
		return 0;
	if (!json_is_integer(v) || n < min || n > max)
		return err_text(err, EINVAL, "\"%s\" must be an integer from %lld to %lld", key,
				(long long)min, (long long)max);
	*out = n;
	return 0;
}

int request_word(json_t *obj, const char *key, const char *const *words, unsigned n,
		 struct err *err)
{
	const char *word = json_string_value(json_object_get(obj, key));
	char list[160] = "";
	size_t len = 0;

	for (unsigned i = 0; word && i < n; i++)
		if (strcmp(word, words[i]) == 0)
			return (int)i;
	for (unsigned i = 0; i < n && len < sizeof(list); i++) {
		const char *before = i == 0 ? "" : i + 1 == n ? " or " : ", ";

		len += (size_t)snprintf(list + len, sizeof(list) - len, "%s\"%s\"", before,
					words[i]);
	}
	return err_text(err, EINVAL, "\"%s\" must be %s", key, list);
}

int request_boolean(json_t *obj, const char *key, bool *out, struct err *err)
{
	json_t *v = json_object_get(obj, key);

	if (!v)
		return 0;
	if (!json_is_boolean(v))
		return err_text(err, EINVAL, "\"%s\" must be true or false", key);
	*out = json_is_true(v);
	return 0;
}
