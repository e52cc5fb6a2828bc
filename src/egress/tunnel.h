/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tunnel that was allowed: dials, tells the guest that it is open, looks at
 * the ClientHello, and then carries bytes both ways.
 *
 * Nothing of the guest goes to the destination before its ClientHello was found
 * good, and nothing of the destination to the guest. What a reader does not take
 * is kept, at most TUNNEL_CHUNK bytes a direction, and then the other side is
 * not read. The end of one direction is passed on, and the other goes on.
 *
 * Thread: the loop's.
 */
#pragma once

#include "egress/egress.h"

#define TUNNEL_CHUNK  65536u
#define TUNNEL_DIAL_S 10u

struct lingers;

struct tunnels {
	struct loop *loop;
	struct egress *e;
	struct lingers *lingers;
	struct list list;
	uint8_t chunk[TUNNEL_CHUNK]; /* what is passed on at this moment */
};

void tunnels_init(struct tunnels *t, struct loop *loop, struct egress *e, struct lingers *lingers);
void tunnels_free(struct tunnels *t);

/* Takes fd and the verdict's grant. q: the question, a CONNECT or SOCKS. */
void tunnel_start(struct tunnels *t, int fd, const struct egress_question *q,
		  const struct egress_verdict *v);

/* What a guest is told: the head of a reply to CONNECT, or a reply of SOCKS. */
const void *tunnel_success(enum egress_proto proto, size_t *len);
