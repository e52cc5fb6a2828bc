/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every request goes through before and after its endpoint: checks of the
 * head (framing, key, route), collecting a JSON body within its limit, the
 * trace context, and the access log line.
 * Thread: the loop's. fork: no state.
 */
#pragma once

#include "daemon/http.h"

/* Budgets of the log; h->d is there. stop: tells what was counted. */
void intake_init(struct http *h);
void intake_stop(struct http *h);

/* The headers are there: finds the route and calls its begin(), or answers. */
void intake_head(struct request *r, const char *method);

/* A piece of a body that the endpoint wants whole. */
void intake_body(struct request *r, const void *data, size_t len);

/* The body is not needed any more. Harmless the second time. */
void intake_drop_body(struct request *r);

/* The account of who asks, or of all. */
struct held *intake_held(struct request *r);

/* One "http_request" line, or one more that is counted. whole: the answer was sent to its end. */
void intake_log(struct request *r, bool whole);
