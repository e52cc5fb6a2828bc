/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of the HTTP plane (egress/plane.h): libmicrohttpd, driven from our loop as the daemon does
 * it, takes connections from fronts (front.h), parses requests and writes answers; a request
 * (request.h) asks for a decision and runs a transfer (transfer.h).
 *
 * A guest's connection is a front and, from its first good head on, a struct http_conn, which lives
 * from the library's notification of its start to that of its end. Either may end first.
 *
 * Thread: the loop's. fork: sockets are close-on-exec.
 */
#pragma once

#include "egress/http/front.h"
#include "egress/http/upstream.h"
#include "egress/plane.h"

#include <microhttpd.h>
#include <stdbool.h>

struct http_request;
struct intercept;

#define HTTP_CONNECTIONS 512u    /* of guests, which egress_stream_begin() bounds before */
#define HTTP_MEMORY      131072u /* bytes that the library has for one */

struct http_conn {
	struct list link; /* plane->left once its front is gone; first: overwritten when freed */
	struct http_plane *plane;
	struct http_front *front; /* NULL: gone */
	struct MHD_Connection *mhd;
	struct http_request *req; /* under way, or NULL */
	struct upstream_kept kept;
	unsigned int kicks;
};

struct http_plane {
	struct loop *loop;
	struct egress *e;
	struct MHD_Daemon *mhd;
	struct loop_src mhd_src;
	struct loop_timer timer;
	bool resumed;      /* a connection was resumed since the library ran */
	bool got_on;       /* it has called us while it ran */
	unsigned int vain; /* runs in a row that it wanted at once, and in which it did not */
	struct list fronts, left, requests;
	struct upstream up;
	struct intercept *intercept; /* NULL: no policy has wanted it */
};

/* Gives the library a socket: 0, or -errno and it is closed. */
__must_check int http_plane_add(struct http_plane *p, int fd);
/* The library is to run at the end of this turn of the loop. */
void http_plane_soon(struct http_plane *p);
/* The front of this connection is gone. */
void http_conn_front_gone(struct http_conn *c);

/* The HTTP answer to a head that is refused before it is parsed; its record is sent. NULL: memory.
 */
char *http_refuse_text(const struct http_front *f, const char *why);
