/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection of the guest until it is known what it is: its first bytes are
 * looked at (MSG_PEEK), and it goes to the HTTP plane untouched, or it is spoken
 * to here (SOCKS5, CONNECT) until there is a verdict, and then becomes a tunnel,
 * is handed to the interception, or ends with a denial. Of what the guest sent,
 * exactly the request is consumed.
 *
 * Thread: the loop's.
 */
#pragma once

#include "egress/egress.h"
#include "egress/linger.h"
#include "egress/tunnel.h"

struct conns {
	struct loop *loop;
	struct egress *e;
	struct list list;
	struct lingers lingers;
	struct tunnels tunnels;
};

void conns_init(struct conns *c, struct loop *loop, struct egress *e);
/* Closes all that are left, tunnels too. */
void conns_free(struct conns *c);

/* Takes fd, a UNIX stream. What cannot be served (too many, no memory) is closed at once. */
void conn_take(struct conns *c, int fd, uint64_t stream, const char *exec);
