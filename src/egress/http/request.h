/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A request of a guest, from its head to the last byte of its answer: looked at
 * (target.h), decided (decide.h), passed on (transfer.h), and answered.
 *
 * The order of the library's calls: first with the head, again and again until that call does not
 * suspend the connection; then for each piece of body; then with all of it, again after each
 * resume until an answer is queued. It lets an answer be queued in the first and in the last of
 * these only: what is refused for its head is refused before any of its body is read, also before
 * a client that waits for "100 Continue" is told to send it. What fails in the middle of an upload
 * is told by the front (http_front_answer()), also behind an answer that waits; what the
 * destination answers there is passed on when the rest of the upload was read and dropped.
 *
 * Thread: the loop's. fork: memory only.
 */
#pragma once

#include "egress/http/plane_impl.h"
#include "egress/http/transfer.h"

enum request_phase { REQUEST_HEAD, REQUEST_BODY, REQUEST_WAIT, REQUEST_REPLY };

struct http_request {
	struct list link; /* plane->requests */
	struct http_plane *plane;
	struct http_conn *c;
	struct MHD_Connection *mhd;
	enum request_phase phase;
	bool suspended;
	bool gone;    /* nobody waits for an answer */
	bool checked; /* its head was looked at */
	bool decided; /* v is the verdict */
	bool close;   /* this answer is the connection's last */

	char *uri;
	char *method;
	char *path; /* of the question: without the query */
	struct http_target target;
	struct http_fields fields;
	enum http_framing framing;
	uint64_t length;
	uint64_t dropped; /* bytes of the body that nobody wanted any more */
	struct egress_question q;
	struct egress_asking *asking;
	struct egress_verdict v;
	struct http_transfer *x;

	struct MHD_Response *reply; /* made, not yet queued */
	unsigned int status;
	bool replied; /* made at least */
};

/* The client has left, or the plane ends. */
void http_request_gone(struct http_request *r);

/*
 * The rest of its body is not well-formed, which the library must not see: what the front says in
 * place of an answer (its record is sent; NULL: no memory), in *text. False: an answer is on its
 * way already.
 */
bool http_request_bad_body(struct http_request *r, const char *why, char **text);

/* At the end of it; of its connection, where the library does not say that it is completed. NULL:
 * harmless. */
void http_request_free(struct http_request *r);

/* The library's callbacks; cls is the plane. */
void *http_request_new(void *cls, const char *uri, struct MHD_Connection *mhd);
enum MHD_Result http_request_call(void *cls, struct MHD_Connection *mhd, const char *url,
				  const char *method, const char *version, const char *data,
				  size_t *len, void **ctx);
void http_request_completed(void *cls, struct MHD_Connection *mhd, void **ctx,
			    enum MHD_RequestTerminationCode code);
