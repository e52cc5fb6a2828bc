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
 * Limits hold for it as for what is granted: it is closed after idle_s, not used beyond total_s,
 * and makes room, the longest idle first, where one more would be more than "connections". While a
 * request is under way the grant of that stands for it.
 *
 * Thread: the loop's. fork: sockets are close-on-exec.
 */
#pragma once

#include "egress/decide.h"
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

/*
 * What is kept for one connection of the guest: a connection at most, as what the next transfer has
 * no use for is closed ahead of it. It has one transfer at a time.
 */
struct upstream_kept {
	struct list link; /* upstream->kept */
	struct list idle; /* upstream->idle while no grant stands for it */
	struct upstream *up;
	CURLSH *share;   /* that libcurl keeps it in; NULL: none */
	uint64_t serial; /* of the policy */
	int fd;          /* libcurl's; -1: none, or a transfer uses it */
	bool tls;        /* where it leads, as the next three */
	char host[EGRESS_HOST_MAX + 1];
	struct sockaddr_storage addr;
	socklen_t addr_len;
	uint64_t born_ns;
	struct loop_timer timer; /* while idle: the end of that */
};

#define UPSTREAM_KEPT 1L

struct upstream {
	struct loop *loop;
	struct egress *e;
	struct upstream_pool *pool; /* for new transfers, or NULL */
	struct list kept;
	struct list idle; /* those of kept that are idle, the longest first */
	size_t idle_n;
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
 * For a transfer that begins, the one before it being freed; it uses the share until it tells its
 * end. What is kept is closed unless it leads where v does, nothing came on it since then, which no
 * request would have asked for, and fresh does not say that a new one is wanted. NULL without
 * memory.
 */
CURLSH *upstream_kept_use(struct upstream_kept *k, const struct egress_verdict *v, bool tls,
			  bool fresh);
/* Its transfer dials. */
void upstream_kept_dialled(struct upstream_kept *k);
/* Its transfer is over, and uses the share no more. fd: of what libcurl has kept, -1: nothing. */
void upstream_kept_learn(struct upstream_kept *k, int fd);
/* The grant of its transfer ends: what is kept is idle from now on. well: false: it is closed. */
void upstream_kept_rest(struct upstream_kept *k, bool well);
/* Closes what is kept; its transfer is freed. */
void upstream_kept_free(struct upstream_kept *k);
/* Closes idle ones until there are not more than that. */
void upstream_spare(struct upstream *up, size_t most);
/* There is a new policy: closes all but those that a transfer uses, which are closed at its end. */
void upstream_forget(struct upstream *up);
