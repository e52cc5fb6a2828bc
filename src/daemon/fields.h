/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Members of a JSON request body, each checked for its type. The first wrong
 * one answers 400 naming the field, and the function returns false. Strings with a NUL are refused:
 * nothing that they are for (code, paths, variables) can hold one. Thread: the loop's. fork: no
 * state.
 */
#pragma once

#include "daemon/http.h"

#include <jansson.h>

/* False: the body has more values than are built of one; answered. */
bool fields_few(struct request *r);

/* The body as an object (new reference); an empty body is {} when allowed. NULL: answered. */
json_t *fields_parse(struct request *r, bool empty_ok);

/* Refuses members that are not one of names (NULL at the end): what is not understood would be
 * done without. */
bool fields_only(struct request *r, const json_t *obj, const char *const *names);

/* Absent or null leaves *out alone. Strings live as long as obj. */
bool fields_string(struct request *r, const json_t *obj, const char *name, const char **out,
		   size_t *len);
/* A path of the guest: 1 to LIMIT_PATH bytes. */
bool fields_path(struct request *r, const json_t *obj, const char *name, const char **out);
/* user or root. */
bool fields_user(struct request *r, const json_t *obj, const char *name, const char **out);
bool fields_bool(struct request *r, const json_t *obj, const char *name, bool *out);
bool fields_int(struct request *r, const json_t *obj, const char *name, json_int_t min,
		json_int_t max, json_int_t *out);
/* Any number from 0 to max. */
bool fields_number(struct request *r, const json_t *obj, const char *name, double max, double *out);
/* An array of strings, at most max of them and max_bytes in all. Borrowed. */
bool fields_array(struct request *r, const json_t *obj, const char *name, size_t max,
		  size_t max_bytes, json_t **out);
/* Variables of a program: names that execve() can pass on, and a shell can name. Borrowed. */
bool fields_env(struct request *r, const json_t *obj, const char *name, json_t **out);
/* {"cols", "rows"} of a terminal, both there, each from 1 to LIMIT_TERMINAL. Borrowed. */
bool fields_size(struct request *r, const json_t *obj, const char *name, const json_t **out);
/* The same, obj being the object itself. */
bool fields_size_is(struct request *r, const json_t *obj, json_int_t *cols, json_int_t *rows);
/* An object of strings, at most max members and max_bytes in all. Borrowed. */
bool fields_map(struct request *r, const json_t *obj, const char *name, size_t max,
		size_t max_bytes, json_t **out);
