/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The egress of one sandbox: its grant, the proxy that holds it, its records, and
 * what the guest's agent knows of it. A sandbox without a grant has no object until
 * it gets one, and never a proxy.
 *
 * The way of a connection: guest -> VMM -> CTL_GUEST_CONNECT -> a socket pair, one
 * end to the VMM, the other to the proxy. The proxy is started by the first of them
 * (or by the first grant with an interception, whose CA the guest must know), ended
 * with the sandbox or the grant, and started again after a failure by the next
 * connection, PROXY_RESTARTS times in PROXY_RESTART_NS. Nothing waits for it here:
 * policy and connections wait in its socket, and when that is full the connection is
 * rejected.
 *
 * It fails closed. Whatever is wrong with proxy, policy or socket: connections are
 * rejected, the state is "failed" with the reason, and the sandbox works on.
 *
 * Thread: the loop's. fork: a child has nothing but what egress_set() gives it.
 */
#pragma once

#include "lib/list.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct egress_sandbox;
struct frame;
struct grant;
struct sandbox;

/* --- a new sandbox ----------------------------------------------------------------------- */

/* Before it is started. Takes a reference; NULL: none. 0 or -ENOMEM. */
__must_check int egress_set(struct sandbox *sb, struct grant *g);
/*
 * Before it is renewed: true when it may be at once; otherwise fn comes when the CA of its
 * interceptions is there, or is not to be had.
 */
bool egress_prepare(struct sandbox *sb, void (*fn)(struct sandbox *sb));
/*
 * It is renewed now: its VMM takes connections from here on. The text of RENEW's member (a new
 * string), or NULL: there is no grant (or no memory; the agent is told later).
 */
char *egress_begin(struct sandbox *sb);
/* Its agent has answered RENEW with OK. */
void egress_renewed(struct sandbox *sb, const struct frame *ok);
/* It is READY. */
void egress_ready(struct sandbox *sb);

/* --- life -------------------------------------------------------------------------------- */

/* Its VMM asks on behalf of the guest. */
void egress_on_connect(struct sandbox *sb, uint32_t id);

/* A change of the grant, until the proxy and the guest's agent know of it. */
struct egress_change {
	struct list link;
	/* failure: NULL, or why the agent could not be told. Once, already unlinked. */
	void (*done)(struct egress_change *c, const char *failure);
	uint64_t policy; /* serial that the proxy has to answer; 0: none */
};

/* Replaces the grant (NULL: takes it away) at once; c->done follows, perhaps inside the call. 0 or
 * -ENOMEM (nothing has changed). */
__must_check int egress_change(struct sandbox *sb, struct grant *g, struct egress_change *c);
void egress_drop_change(struct egress_change *c);

/* It has another id from here on (a merge). */
void egress_renamed(struct sandbox *sb);

/* Takes the records that its proxy has sent by now. */
void egress_drain(struct sandbox *sb);

/* The sandbox has ended; then, its memory goes. */
void egress_end(struct sandbox *sb);
void egress_free(struct sandbox *sb);

/* --- looking at it ----------------------------------------------------------------------- */

/* Borrowed; NULL: none. */
struct grant *egress_grant(const struct sandbox *sb);
/* Made by its proxy, or NULL. Borrowed. */
json_t *egress_ca(const struct sandbox *sb);
/* {"allow", "inject", "state", "reason"}. New reference, NULL without memory. */
json_t *egress_json(const struct sandbox *sb);
/* Its last records, as lines (a new string). NULL: no memory. */
char *egress_lines(const struct sandbox *sb, size_t limit, size_t *len);
