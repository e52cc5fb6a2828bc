/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request to the daemon and its reply, each on a connection of its own.
 * One thread; returns when the reply is there. fork: none may happen meanwhile.
 */
#pragma once

#include "cli/endpoint.h"
#include "cli/http_reply.h"

#include <jansson.h>

#define HTTP_CALL_BODY_MAX (1024u * 1024u)

struct http_call {
	const struct endpoint *to;
	const char *method, *path;
	const char *headers; /* further ones, each with CR LF; or NULL */
	json_t *body;        /* or NULL; stays the caller's */
	unsigned timeout_s;  /* 0: none */
	const char *waiting; /* said on stderr when there is no answer after two seconds; or NULL */
	/*
	 * Readable: the request is given up by closing our sending side, and the
	 * daemon gets a few seconds to answer all the same, so that what it made
	 * just then is known. -1: none.
	 */
	int stop_fd;
};

/*
 * The reply's body as JSON (NULL when it has none; the caller's). A status that
 * is not 2xx is an error with the daemon's own sentence. -ECANCELED: given up.
 */
__must_check int http_call(const struct http_call *c, json_t **answer, struct err *err);

/*
 * Sends a request whose reply is a stream, and reads its head, which must have
 * this status. *fd is the connection then, r holds what has come (r->body may
 * have some already), and rest what came behind a 101.
 */
__must_check int http_open(const struct http_call *c, int status, int *fd, struct http_reply *r,
			   struct buf *rest, struct err *err);

/* The request's head for a body of unknown length (chunked) or of none; as buf_append(). */
__must_check int http_append_head(struct buf *out, const struct http_call *c, bool chunked);
