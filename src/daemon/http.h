/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP for podflared: libmicrohttpd, driven from our event loop. It has no
 * thread and no listening socket of its own (http_conn.h); its epoll descriptor
 * is a source in our loop, its timeouts are a timer there. It is always run with
 * a zero timeout: its single-threaded epoll mode would otherwise stall when a
 * multiple of 128 connections is ready at once.
 *
 * A request is suspended whenever it waits for anything but its socket. A client
 * that closes its connection, or only its sending side, gives up a request that
 * waits or streams: it ends at once.
 *
 * Thread: the loop's. fork: not inherited on purpose (sockets are close-on-exec).
 */
#pragma once

#include "daemon/config.h"
#include "daemon/http_conn.h"
#include "daemon/http_line.h"
#include "daemon/log_budget.h"
#include "daemon/route.h"
#include "lib/buf.h"
#include "lib/err.h"
#include "lib/list.h"
#include "lib/loop.h"

#include <microhttpd.h>
#include <stdbool.h>
#include <stdint.h>

struct daemon;
struct request;

/* A piece of a streamed reply: bytes (> 0), or one of these. */
#define PULL_WAIT  0 /* nothing yet; http_wake() when there is */
#define PULL_END   -1
#define PULL_ABORT -2 /* cut the connection: the client must not take this for the whole */

/* What an endpoint may take over. NULL members: not needed. */
struct request_ops {
	/* Body bytes: how many were taken; 0 = no room, http_wake() when there is. */
	size_t (*body)(struct request *r, const void *data, size_t len);
	/* Next bytes of a streamed reply. */
	ssize_t (*pull)(struct request *r, char *out, size_t max);
	/*
	 * The connection is no longer HTTP: 101 was sent, and the socket (non-blocking) is the
	 * endpoint's, until it calls http_upgrade_close(). extra: what was read of it already.
	 */
	void (*upgraded)(struct request *r, int fd, const void *extra, size_t len);
	/* The request is over (answered, broken off, or the daemon stops). r goes away after it. */
	void (*end)(struct request *r);
};

enum request_phase { REQUEST_HEAD, REQUEST_BODY, REQUEST_WAIT, REQUEST_REPLY };

struct request {
	struct list link;  /* http.requests */
	struct list waits; /* in http.line, or nowhere */
	struct http *http;
	struct http_conn *c;
	struct MHD_Connection *conn;
	char *uri; /* as it came; '?' cut into path and query */
	char *query;
	struct route_match match;
	char method[16];   /* longer ones are cut: they match no route */
	const char *owner; /* whose sandboxes it may see (owner.h); NULL: nobody's */
	char trace_id[33], parent_span[17];
	uint64_t start_ns;
	struct log_budget *log; /* of its line; NULL: it was not let in */

	enum request_phase phase;
	bool suspended, gone, discard;
	uint64_t discard_left;
	struct buf body;              /* overwritten when freed: it may have secrets */
	size_t held_body, held_reply; /* of intake_held() */

	struct MHD_Response *reply; /* made, not yet queued */
	unsigned int status;

	const struct request_ops *ops;
	void *state; /* of the endpoint */

	struct MHD_UpgradeResponseHandle *upgraded; /* its socket is the endpoint's; else NULL */
};

struct http {
	struct daemon *d;
	struct loop *loop;
	struct MHD_Daemon *mhd;
	struct loop_src listener, mhd_src;
	struct loop_timer timer;
	struct loop_timer rest; /* no connection is taken until then: there is no memory */
	struct list requests;
	struct list hups;  /* connections whose other side has closed */
	bool resumed;      /* a connection was resumed since the library ran */
	bool closing;      /* what comes now is not answered any more */
	bool got_on;       /* the library has called us since it was run last */
	unsigned int vain; /* runs in a row after which it wanted another at once, and had not */
	int spare_fd;      /* given up to accept and refuse a connection when none is left */
	unsigned int connections, max_connections;
	struct list strangers;         /* http_conn.h */
	unsigned int nstrangers, ncut; /* of them; cut for room, and not closed yet */
	struct http_share shares[CONFIG_KEYS_MAX];
	unsigned int nkeys;
	struct log_budget log_strangers, log_known[CONFIG_KEYS_MAX];
	struct http_line line;
};

/* Binds and listens; nothing is accepted before http_conn_accept(). */
int http_init(struct http *h, struct daemon *d, unsigned int max_connections, struct err *err);
/* Ends what is left and frees all. */
void http_free(struct http *h);

/* The client has closed: nobody takes the answer of a request that waits or streams. */
void http_hup(struct request *r);

/* The request can go on: body room, a reply, or streamed bytes are there. */
void http_wake(struct request *r);

/* A header of the request, or NULL. */
const char *http_header(struct request *r, const char *name);

/* Answers with these bytes (copied). headers: pairs of name and value, NULL at the end; may be
 * NULL. */
void http_reply(struct request *r, unsigned int status, const char *type, const void *data,
		size_t len, const char *const *headers);
/* The same with the headers of a streamed answer, for one that is complete before it begins. */
void http_reply_whole(struct request *r, unsigned int status, const char *type, const void *data,
		      size_t len, const char *const *headers);
/* Begins a streamed answer by ops->pull. size: bytes, or -1 when unknown; headers: as above. */
void http_reply_stream(struct request *r, unsigned int status, const char *type, int64_t size,
		       const char *const *headers);
/* Answers 101: ops->upgraded follows, unless the connection breaks before. headers: as above. */
void http_reply_upgrade(struct request *r, const char *const *headers);
/* Gives the socket back: it is closed, and the request ends soon. Harmless the second time. */
void http_upgrade_close(struct request *r);
