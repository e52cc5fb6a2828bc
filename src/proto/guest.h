/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What host and guest must agree on besides frames: ports, names, and the
 * layout of the console ring that VMM and daemon share.
 * fork: constants only; a child gets a console ring of its own.
 */
#pragma once

#include <stdint.h>

/* vsock port on which podflare-agent listens. */
#define GUEST_AGENT_PORT 5555u

/*
 * vsock port of the host (CID 2) to which a guest with an egress grant opens
 * connections; anything else, and everything without a grant, is refused. What
 * is spoken there is told in proto/egress.h.
 */
#define GUEST_EGRESS_PORT 5556u

/* Where the agent's relay listens on the guest's 127.0.0.1 while there is a grant. */
#define GUEST_PROXY_HTTP_PORT  3128
#define GUEST_PROXY_SOCKS_PORT 1080
/* As whom: of the range that Debian gives to nobody. Neither root nor the user below. */
#define GUEST_RELAY_UID 65432

/*
 * 32-bit I/O port by which the agent tells the VMM how far it is: no stream
 * exists yet, and nothing has to poll. Values below. Root in the guest can
 * write it as well; the daemon therefore takes it only as a hint to connect.
 */
#define GUEST_STATUS_PORT  0xf10
#define GUEST_STATUS_READY 1u     /* the agent listens */
#define GUEST_STATUS_FAIL  0x100u /* | step number: boot failed, text is on the console */

/* Unprivileged user of the guest that runs all code. */
#define GUEST_USER "user"
#define GUEST_UID  1000
#define GUEST_GID  1000
#define GUEST_HOME "/home/user"

/*
 * Console ring: a memfd of CONSOLE_RING_SIZE bytes, written by the VMM alone
 * (guest-controlled text), read by the daemon. `total` counts all bytes ever
 * written; byte i is at data[i % CONSOLE_RING_DATA]. A reader takes total
 * first and copies at most CONSOLE_RING_DATA bytes that end there.
 */
#define CONSOLE_RING_SIZE 65536u
#define CONSOLE_RING_DATA (CONSOLE_RING_SIZE - 8u)

struct console_ring {
	_Atomic uint64_t total;
	uint8_t data[CONSOLE_RING_DATA];
};
