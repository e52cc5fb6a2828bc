/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libcurl run from our loop: many transfers, one thread. It speaks HTTP/1.1 and
 * TLS for us and nothing else: it resolves no names, opens no files, knows no
 * proxies, follows nothing and keeps nothing but idle connections.
 *
 * Idle connections are kept for the next request to the same name, port and
 * checked address. They are of one policy: with the next one they are closed.
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

struct upstream {
	struct loop *loop;
	struct egress *e;
	struct upstream_pool *pool; /* for new transfers, or NULL */
};

/* Before the jail: what the libraries do once, they do here. */
__must_check int upstream_init(struct upstream *up, struct loop *loop, struct egress *e,
			       struct err *err);
/* All transfers are gone. */
void upstream_free(struct upstream *up);

/* The pool of the policy that holds now, for one transfer more. NULL without memory. */
struct upstream_pool *upstream_pool_get(struct upstream *up);
void upstream_pool_put(struct upstream_pool *pool);
