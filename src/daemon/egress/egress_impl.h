/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The object behind egress.h as its parts see it: egress.c (grant, state, records),
 * egress_proxy.c (the proxy of it), egress_agent.c (what the agent is told).
 * Thread: the loop's. fork: no state.
 */
#pragma once

#include "daemon/agent_client.h"
#include "daemon/egress/egress.h"
#include "daemon/egress/grant.h"
#include "daemon/egress/log.h"
#include "daemon/egress/proxy.h"
#include "daemon/limits.h"
#include "daemon/sandbox.h"

struct egress_sandbox {
	struct sandbox *sb;
	struct grant *grant; /* NULL: none */
	json_t *ca;          /* {"cert_pem", "key_pem"}, or NULL; secret, kept for its life */
	char reason[400];    /* "" or why it has failed */
	struct egress_log log;
	struct audit_share *share; /* since its first proxy, or NULL */
	struct list changes;       /* struct egress_change */

	/* egress_proxy.c */
	struct proxy *proxy;                  /* the one of now, or NULL */
	uint64_t failures_ns[PROXY_RESTARTS]; /* a ring: when it was started after a failure */
	unsigned int nfailures;
	bool failed;           /* the last one did not end at our wish */
	uint64_t ids, streams; /* of records and connections, over all of them */
	uint64_t bytes;        /* that they have told of, all of them */

	/* egress_agent.c */
	struct agent_stream *tell;
	struct loop_timer tell_limit;
	bool known;              /* what the agent was told last is the following */
	bool told_on, told_ca;   /* on; with a CA */
	bool asked_on, asked_ca; /* of the request under way */
	char tell_failure[640];  /* "" or why the last request was in vain */

	void (*prepared)(struct sandbox *sb);
};

/* Failed: nothing more is let through by the proxy there was. */
void egress_failed(struct egress_sandbox *e, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* Changes, and who waits with RENEW, may be done. */
void egress_check(struct egress_sandbox *e);

/* The CA of its interceptions is still on its way. */
bool egress_awaits_ca(const struct egress_sandbox *e);

/* The proxy runs, or was started, with the grant of now: 0, or -errno (and it has failed). */
__must_check int egress_proxy_need(struct egress_sandbox *e);
/* The grant is another one: the proxy, if there is one, is told. Serial of the policy, 0: none. */
uint64_t egress_proxy_update(struct egress_sandbox *e);
/* It is not needed any more. owner: its last records are still taken. */
void egress_proxy_end(struct egress_sandbox *e, bool owner);

/* The agent is told what it does not know yet. Harmless at any time. */
void egress_agent_tell(struct egress_sandbox *e);
/* Nothing is under way any more, and it knows all; or telling it was in vain. */
bool egress_agent_settled(const struct egress_sandbox *e);
void egress_agent_end(struct egress_sandbox *e);
/* {"on": ..., "ca": ...} as text, and what it says in *on and *ca. NULL: no memory. */
char *egress_agent_text(const struct egress_sandbox *e, bool *on, bool *ca);
