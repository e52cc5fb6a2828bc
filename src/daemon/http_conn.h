/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections beneath HTTP: accepting them, and noticing that the other side
 * has closed.
 *
 * libmicrohttpd misses a close in two cases: while a connection is suspended,
 * and when the last bytes and the end arrive together (a short read makes it
 * wait for an edge that has been). So each socket is in our epoll set as well
 * (EPOLLRDHUP). Then a request that waits or streams ends at once, and any other
 * connection is made to read again until it has seen the end itself.
 *
 * Strangers are connections of which no request has come yet that was let in (with
 * a key, where keys are asked for; where none are, any). They have half of all
 * places at most. When there is no room for another one, the stranger who has been
 * there longest is cut for it: silent ones do not keep out who has something to
 * say, and never take a place from who was let in.
 *
 * With more than one key, none has more than half of all places. A key that has them gets another
 * one for one of its own that is idle: no request of it has been let in since the last one ended.
 * When there are neither places nor strangers, the idle one of the key that has the most is cut, so
 * that a key which has none finds one.
 *
 * Thread: the loop's. fork: sockets are close-on-exec.
 */
#pragma once

#include "lib/err.h"
#include "lib/list.h"
#include "lib/loop.h"

#include <microhttpd.h>
#include <stdbool.h>

/* Beyond the most connections: those that were cut to make room, until they are closed. */
#define HTTP_CONN_SPARE 16u

struct http;
struct request;

/* The connections of a key; of all who are let in, where there are no keys. */
struct http_share {
	unsigned int n;
	struct list idle;
};

struct http_conn {
	struct list
		link; /* http.hups once the other side has closed; first: overwritten when freed */
	struct http *http;
	struct MHD_Connection *mhd;
	struct loop_src watch;
	struct loop_timer limit;  /* of the head or body that is being read */
	struct http_share *share; /* of the key whose request was let in last; NULL: a stranger */
	/* http.strangers, oldest first; or share->idle, longest first, but while a request that was
	 * let in is under way. None when cut. */
	struct list idle;
	bool hup, cut;
	unsigned int kicks;  /* since the request last got on */
	struct request *req; /* under way, or NULL */
};

/* The lists of h, empty; h->d is there. */
void http_conn_init(struct http *h, unsigned int max);
/* Binds and listens; nothing is accepted before http_conn_accept(). */
int http_conn_listen(struct http *h, struct err *err);
int http_conn_accept(struct http *h, struct err *err);
/* Closes the listening socket. */
void http_conn_stop(struct http *h);

/* The library's notification of a new or closed connection (cls: the struct http). */
void http_conn_notify(void *cls, struct MHD_Connection *mhd, void **ctx,
		      enum MHD_ConnectionNotificationCode code);

/* Ours of the library's. NULL when there was no memory for it. */
struct http_conn *http_conn_of(struct MHD_Connection *mhd);

/* To be called when the library has run: closed connections must read once more. */
void http_conn_kick(struct http *h);

/*
 * What is read now must have come within so many times the HTTP timeout, however steadily it
 * comes, or the connection is cut; 0: no limit any more. Begins with 1.
 */
void http_conn_limit(struct http_conn *c, unsigned int times);

/* The request on it is to be let in, with this key (0 where there are none). False: the key has as
 * many as it may, and none is idle: then it is not let in. NULL is fine. */
__must_check bool http_conn_known(struct http_conn *c, unsigned int key);
/* The request on it is over. */
void http_conn_idle(struct http_conn *c);

/* No more bytes in either direction: the library will see an error. */
void http_conn_cut(struct http_conn *c);
