/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One podflare-egress process: starting it, its messages (proto/egress.h), and its
 * end. Everything that comes from it is checked (types, sizes, order, that nothing
 * is told that was not asked for): it reads what the guest and the world send, and
 * may have been taken over. One that breaks the protocol, or does not answer, is
 * killed.
 *
 * Life: proxy_start() -> callbacks -> ops->ended(reason) once -> the object goes
 * away by itself. Or proxy_leave(), at any time: ops->ended is not called any more,
 * the process is told to end, and killed when it takes long; its last records still
 * come, to the audit and, while there is an owner, to ops->record.
 *
 * Nothing is queued here: what does not fit into the socket is an error of the call.
 *
 * Thread: the loop's. fork: posix_spawn; the process gets the control socket as
 * descriptor EGRESS_FD, /dev/null as 0 and 1, stderr as 2, an empty environment, and
 * nothing else.
 */
#pragma once

#include "daemon/egress/record.h"
#include "daemon/ids.h"
#include "lib/err.h"
#include "lib/list.h"
#include "lib/loop.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct audit_share;
struct egress_host;
struct held;
struct proxy;
struct proxy_group;

struct proxy_ops {
	/* The answer to proxy_policy(): error is NULL or a sentence; ca {"cert_pem", "key_pem"} or
	 * NULL, borrowed. */
	void (*policy)(struct proxy *p, uint64_t serial, const char *error, json_t *ca);
	/* text: r->json as text; the callee's to keep when it returns true. NULL: not wanted. */
	bool (*record)(struct proxy *p, const struct record *r, char *text);
	/* It has told of more bytes that were sent and received: of those of ends, and ahead of
	 * these. NULL: not wanted. */
	void (*used)(struct proxy *p, uint64_t more);
	/* The answer to proxy_test(), checked; borrowed. */
	void (*test)(struct proxy *p, json_t *answer);
	/* It does nothing any more. p is not to be touched afterwards. */
	void (*ended)(struct proxy *p, const char *reason);
};

struct proxy {
	struct list link; /* host->proxies; first: overwritten when freed */
	struct egress_host *host;
	const struct proxy_ops *ops;
	void *owner; /* of the callbacks; NULL: none any more */
	char sandbox[SANDBOX_ID_LEN + 1];
	pid_t pid;
	struct loop_src ctl, proc;
	struct proxy_group *group; /* NULL: there are none */
	struct loop_timer limit;   /* of an answer; of the end, when it leaves */
	bool ended;
	bool leaving;

	uint64_t serial, answered; /* of policies: sent, and answered */
	uint64_t test;             /* serial of the question under way, 0: none */
	uint64_t tests;
	struct held *place;        /* given back when the process is gone; NULL: none */
	struct audit_share *share; /* of its sandbox, a reference; NULL: it may write all */
	uint64_t id_base;          /* added to the ids of its records */
	uint64_t streams;          /* id of the last */
	uint64_t open;             /* allowed and not over */
	uint64_t ends;             /* bytes of its ends */
	uint64_t used;             /* bytes that it has told of, one way or the other */
};

/* NULL and a sentence. sandbox: its id, for records. */
struct proxy *proxy_start(struct egress_host *h, const char *sandbox, const struct proxy_ops *ops,
			  void *owner, struct err *err);

/* The serial of the policy in fd (which stays the caller's), or -errno. */
int64_t proxy_policy(struct proxy *p, int fd);
/* Hands over a connection; fd stays the caller's. 0, -EAGAIN: its socket is full, or -errno. */
__must_check int proxy_stream(struct proxy *p, const char *exec, int fd);
/* Bytes of the sandbox beside those that it counts. 0 or -errno. */
__must_check int proxy_used(struct proxy *p, uint64_t bytes);
/* method and path may be NULL. One at a time. 0 or -errno. */
__must_check int proxy_test(struct proxy *p, const char *host, uint16_t port, const char *method,
			    const char *path);

/* Takes what it has said, as far as that waits now. */
void proxy_poll(struct proxy *p);
/* See above. owner: whether there still is one. */
void proxy_leave(struct proxy *p, bool owner);
/* The same for one that has nothing to say any more, and no owner: SIGKILL. */
void proxy_drop(struct proxy *p);
/* SIGKILL; ops->ended follows, with this reason. */
void proxy_kill(struct proxy *p, const char *reason);
/* SIGCHLD. False: it may have ended, and cannot be reaped while it is moved to its group. */
bool proxy_reap(struct proxy *p);
