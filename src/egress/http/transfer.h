/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request on its way to a destination that was allowed, and the answer:
 * an easy handle of libcurl that dials what was decided, counts every byte of both, heads and what
 * frames a body included, for its grant, and holds at most TRANSFER_BUF bytes each way. It begins
 * when the limit of bytes a second has room. A new policy that injects other headers ends it until
 * its head has gone out, and keeps it from being sent once more.
 *
 * What is told through transfer_order.look is only that something changed. The
 * grant is the transfer's from transfer_start() on, also when that fails; it ends with a failure,
 * behind look(), or with transfer_free().
 *
 * Thread: the loop's. fork: sockets are close-on-exec.
 */
#pragma once

#include "egress/decide.h"
#include "egress/http/fields.h"
#include "egress/http/head.h"
#include "egress/http/upstream.h"
#include "lib/buf.h"

#include <openssl/ssl.h>
#include <sys/types.h>

#define TRANSFER_BUF        65536u
#define TRANSFER_HEAD_MAX   65536u /* bytes of the answer's head */
#define TRANSFER_FIELDS_MAX 256u   /* headers of it */

struct transfer_order {
	const char *method;
	bool tls;
	const char *host; /* normal form */
	uint16_t port;
	const char *target;               /* path and query, sent as they are */
	const struct http_fields *fields; /* without those that frame the message */
	enum http_framing framing;
	uint64_t length; /* HTTP_LENGTH */
	const struct egress_verdict *verdict;
	struct upstream_kept *kept; /* of the guest's connection */
	void (*look)(void *arg);
	void *arg;
};

struct http_transfer {
	struct upstream_pool *pool; /* NULL: it has not begun */
	struct upstream_kept *kept;
	struct egress *e;
	bool tls, fresh; /* fresh: not on a kept connection */
	CURL *easy;
	struct curl_slist *headers, *connect_to;
	char error[CURL_ERROR_SIZE];
	struct egress_verdict v;
	void (*look)(void *arg);
	void *arg;

	struct buf up, down;
	bool up_end;                 /* all was fed */
	bool up_over;                /* no more is wanted */
	bool up_paused, down_paused; /* libcurl's callbacks said so */
	bool no_room;                /* the limit of bytes a second: wait */
	struct loop_timer choke;     /* reads no more while that holds */
	bool begun;                  /* the easy handle was given to its pool: */
	bool multi;                  /* it is there */
	unsigned int head_end;       /* bytes of CR LF CR LF that were sent just now; 4: all */

	/* The answer. */
	bool head; /* it is there: */
	unsigned int status;
	int64_t size; /* of its body, -1: unknown */
	struct http_fields reply;
	size_t reply_bytes;
	bool over;      /* no more bytes come */
	const SSL *ssl; /* of the connection that it came on */

	/* What went wrong, EGRESS_R_NONE: nothing. */
	enum egress_reason why;
	bool late; /* ... it took too long */
	char detail[256];
};

/* Results of transfer_pull() beside a count. */
#define TRANSFER_WAIT 0
#define TRANSFER_END  -1
#define TRANSFER_CUT  -2

/* 0 or -ENOMEM; *out is freed by transfer_free() in both cases. */
__must_check int transfer_start(struct http_transfer **out, struct upstream *up,
				const struct transfer_order *o);
/* Ends it wherever it is. NULL: harmless. */
void transfer_free(struct http_transfer *x);

/* Bytes of the request's body: how many were taken; 0: look() tells when there is room. */
size_t transfer_feed(struct http_transfer *x, const void *data, size_t len);
void transfer_feed_end(struct http_transfer *x);
/* Some came that nobody wants: a sign of life all the same. */
void transfer_drop(struct http_transfer *x);
/* Bytes of the answer's body. */
ssize_t transfer_pull(struct http_transfer *x, char *out, size_t max);

/* libcurl is through with it. For upstream.c. */
void transfer_ended(struct http_transfer *x, CURLcode result);
