/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libcurl run from our loop: many transfers, one thread. It speaks HTTP/1.1 and
 * TLS for us and nothing else: it resolves no names, opens no files, knows no
 * proxies, follows nothing and keeps nothing but idle connections.
 *
 * An idle connection is kept for the next request of the same connection of the guest, to the same
 * name, port and checked address, and for nobody else: whatever a destination does with its
 * connection is seen by the one that speaks to it. It is of one policy: with the next one, and with
 * the guest's connection, it is closed.
 *
 * Thread: the loop's. fork: sockets are close-on-exec.
 */
#pragma once

#include "egress/egress.h"
#include "lib/err.h"
#include "lib/list.h"
#include "lib/loop.h"

#include <curl/curl.h>
#include <openssl/x509.h>

/* The transfers of one policy. */
struct upstream_pool {
	struct upstream *up;
	CURLM *multi;
	uint64_t serial;    /* of the policy */
	X509_STORE *trust;  /* what certificates of upstreams are checked against */
	unsigned int users; /* transfers, and one while it is the pool of new ones */
	struct loop_timer timer;
};

/* What is kept for one connection of the guest. It has one transfer at a time. */
struct upstream_kept {
	struct list link; /* upstream->kept */
	CURLSH *share;    /* of idle connections, UPSTREAM_KEPT at most; NULL: none */
	uint64_t serial;  /* of the policy */
	int fd;           /* of the one that was used last, libcurl's; -1: none */
};

#define UPSTREAM_KEPT 1L

struct upstream {
	struct loop *loop;
	struct egress *e;
	struct upstream_pool *pool; /* for new transfers, or NULL */
	struct list kept;
};

/* Before the jail: what the libraries do once, they do here. */
__must_check int upstream_init(struct upstream *up, struct loop *loop, struct egress *e,
			       struct err *err);
/* All transfers are gone. */
void upstream_free(struct upstream *up);

/* The pool of the policy that holds now, for one transfer more. NULL without memory. */
struct upstream_pool *upstream_pool_get(struct upstream *up);
void upstream_pool_put(struct upstream_pool *pool);

void upstream_kept_init(struct upstream *up, struct upstream_kept *k);
/*
 * For a transfer that begins, the one before it being freed. A connection on which something came
 * since then, which no request has asked for, is closed. NULL without memory.
 */
CURLSH *upstream_kept_use(struct upstream *up, struct upstream_kept *k);
/* Closes what is kept; its transfer is freed. */
void upstream_kept_free(struct upstream_kept *k);
/* There is a new policy: closes what is idle. */
void upstream_forget(struct upstream *up);
