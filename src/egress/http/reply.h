/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers as the library takes them: those of destinations, and our own, which
 * are JSON.
 * Thread: the loop's. fork: memory only.
 */
#pragma once

#include "egress/http/request.h"

/* A denial or failure, as JSON. NULL without memory. */
struct MHD_Response *http_reply_denial(const struct egress_question *q,
				       const struct egress_verdict *v);
/* 400 for what is no proper request, else egress_denial_status(). */
unsigned int http_reply_status(enum egress_reason why, bool late);

/* The same as a whole response that ends its connection. NULL: memory. */
char *http_reply_text(const struct egress_question *q, const struct egress_verdict *v, bool late);

/* The head of the destination's answer that r->x has; its body comes by pull. NULL: memory. */
struct MHD_Response *http_reply_passed(struct http_request *r, MHD_ContentReaderCallback pull);
