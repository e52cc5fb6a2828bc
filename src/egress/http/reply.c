/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Thread: the loop's. fork: no state.
 */
#define _GNU_SOURCE
#include "egress/http/reply.h"
#include "lib/json_safe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define BLOCK 32768u /* piece of a body of known length */

/* JSON and a line end, as people see it in a terminal. */
static char *denial_text(const struct egress_question *q, const struct egress_verdict *v)
{
	json_t *object = egress_denial_json(q, v);
	char *json = json_text(object);
	char *text = NULL;

	if (json && asprintf(&text, "%s\n", json) < 0)
		text = NULL;
	free(json);
	json_decref(object);
	return text;
}

unsigned int http_reply_status(enum egress_reason why, bool late)
{
	if (why == EGRESS_R_BAD_REQUEST)
		return MHD_HTTP_BAD_REQUEST;
	return late ? MHD_HTTP_GATEWAY_TIMEOUT : egress_denial_status(why);
}

struct MHD_Response *http_reply_denial(const struct egress_question *q,
				       const struct egress_verdict *v)
{
	char *text = denial_text(q, v);
	struct MHD_Response *reply;

	if (!text)
		return NULL;
	reply = MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE);
	if (!reply) {
		free(text);
		return NULL;
	}
	MHD_add_response_header(reply, "Content-Type", "application/json");
	MHD_add_response_header(reply, "Cache-Control", "no-store");
	return reply;
}

char *http_reply_text(const struct egress_question *q, const struct egress_verdict *v, bool late)
{
	unsigned int status = http_reply_status(v->reason, late);
	_cleanup_free char *json = denial_text(q, v);
	char *text;

	if (!json || asprintf(&text,
			      "HTTP/1.1 %u %s\r\nContent-Type: application/json\r\n"
			      "Cache-Control: no-store\r\nContent-Length: %zu\r\n"
			      "Connection: close\r\n\r\n%s",
			      status, MHD_get_reason_phrase_for(status), strlen(json), json) < 0)
		return NULL;
	return text;
}

char *http_refuse_text(const struct http_front *f, const char *why)
{
	struct egress_question q = {
		.proto = f->inside ? EGRESS_INTERCEPT : EGRESS_HTTP,
		.stream = f->stream,
		.host = f->host,
		.host_len = strlen(f->host),
		.port = f->inside ? f->origin.port : 0,
	};
	struct egress_verdict v = {0};

	egress_denied(f->plane->e, &q, EGRESS_R_BAD_REQUEST, why, NULL, &v);
	return http_reply_text(&q, &v, false);
}

struct MHD_Response *http_reply_passed(struct http_request *r, MHD_ContentReaderCallback pull)
{
	struct http_transfer *x = r->x;
	bool bodyless = strcmp(r->method, "HEAD") == 0 || x->status == 204 || x->status == 304;
	uint64_t size = x->size < 0 ? MHD_SIZE_UNKNOWN : (uint64_t)x->size;
	/* The library fills a block with zeros for each answer, most of which are small. */
	size_t block = bodyless || size == 0 ? 1 : size < BLOCK ? (size_t)size : BLOCK;
	struct MHD_Response *reply = MHD_create_response_from_callback(size, block, pull, r, NULL);

	if (!reply)
		return NULL;
	/* The library ends even the body that there is not with an empty chunk. */
	if (bodyless && x->size < 0)
		MHD_set_response_options(reply, MHD_RF_HTTP_VERSION_1_0_ONLY, MHD_RO_END);
	for (size_t i = 0; i < x->reply.n; i++) {
		const struct http_field *f = &x->reply.v[i];

		/* The library writes the length itself, and takes no empty values. */
		if (strcasecmp(f->name, "Content-Length") != 0)
			MHD_add_response_header(reply, f->name, f->value);
	}
	return reply;
}
