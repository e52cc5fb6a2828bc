/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers: JSON values and the error body that all endpoints share:
 * {"error": sentence, "code": stable word, "hint"?: what to do, "field"?: name}.
 * Thread: the loop's. fork: no state.
 */
#pragma once

#include "daemon/http.h"

#include <jansson.h>

/* Answers with a JSON value; takes the reference. */
void reply_json(struct request *r, unsigned int status, json_t *value);

/* 204. */
void reply_empty(struct request *r);

/* hint and field may be NULL. Texts from a guest are made valid UTF-8. */
void reply_error(struct request *r, unsigned int status, const char *code, const char *sentence,
		 const char *hint, const char *field);
/* With extra headers: pairs of name and value, NULL at the end. */
void reply_error_with(struct request *r, unsigned int status, const char *code,
		      const char *sentence, const char *hint, const char *field,
		      const char *const *headers);

/* 400 invalid_request: sentence by format, naming the field. */
void reply_invalid(struct request *r, const char *field, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* 404 of a sandbox that is not there; field: NULL for that of the path's first id. */
void reply_no_sandbox(struct request *r, const char *field);
/* 409 of a sandbox whose VM has ended. */
void reply_ended(struct request *r, const char *reason);
void reply_other_ended(struct request *r, const char *reason, const char *field);
/* 409 of a sandbox that was made not to be forked; what: that is impossible with it. */
void reply_not_forkable(struct request *r, const char *what);
/* agent_open() has failed: 429 when too many are under way, else 503. */
void reply_no_stream(struct request *r, const struct err *err);
/* 503: all that is held for clients is too much (held.h). */
void reply_overloaded(struct request *r);
/* 413 of a JSON body. */
void reply_too_large(struct request *r);
/* 429 of the host's limit. */
void reply_too_many_sandboxes(struct request *r);
