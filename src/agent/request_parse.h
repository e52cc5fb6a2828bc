/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checked members of request objects, for the request_*.c files. All return 0
 * or a negative errno with a sentence; an optional member that is absent leaves
 * *out alone. Stateless. fork: no state.
 */
#pragma once

#include "agent/request.h"

#include <jansson.h>

/* The object of a payload; the caller's to release. A member given twice is refused. */
__must_check int request_object(const void *p, size_t len, json_t **out, struct err *err);
/* Copies a string; absent and not required leaves *out alone. Strings hold no NUL (jansson). */
__must_check int request_string(json_t *obj, const char *key, bool required, char **out,
				struct err *err);
/* The same, not empty and shorter than PATH_MAX. */
__must_check int request_path(json_t *obj, const char *key, bool required, char **out,
			      struct err *err);
/* The name of a context or of a kept command. */
__must_check int request_id(json_t *obj, const char *key, bool required, char **out,
			    struct err *err);
/* "user": whether it is given, and whether that is root. */
__must_check int request_user(json_t *obj, bool *given, bool *root, struct err *err);
/* The members "cols" and "rows". */
__must_check int request_terminal_size(json_t *obj, struct terminal_size *size, struct err *err);
/* The object of EGRESS; *r is empty when it is refused. */
__must_check int request_egress_object(json_t *obj, struct request_egress *r, struct err *err);
__must_check int request_integer(json_t *obj, const char *key, int64_t min, int64_t max,
				 int64_t *out, struct err *err);
/* One of n words, which has to be there: its index. */
__must_check int request_word(json_t *obj, const char *key, const char *const *words, unsigned n,
			      struct err *err);
__must_check int request_boolean(json_t *obj, const char *key, bool *out, struct err *err);
