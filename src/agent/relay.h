/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The relay: carries connections of the guest's loopback to the host while the
 * sandbox has an egress grant, byte for byte, and understands nothing of them.
 *
 * It is a process of its own (the agent's program again, started under the
 * name RELAY_NAME by egress.c) as an unprivileged user, so that whatever the
 * sandbox sends cannot hold up the agent or eat its memory. It finds its two
 * listening sockets at RELAY_FD_HTTP and RELAY_FD_SOCKS; both lead to the same
 * address. When it is killed all its clients see a reset.
 *
 * Bounds: RELAY_CONNS connections are carried, RELAY_WAITING more wait for
 * their turn, at most RELAY_WAIT_NS; whoever else comes is reset at once. Each
 * direction holds at most RELAY_HELD bytes, and none while nobody waits.
 *
 * fork: the copy's relay is killed before anything of the user's goes on.
 */
#pragma once

#include <stdint.h>
#include <sys/socket.h>

#define RELAY_NAME     "podflare-relay"
#define RELAY_FD_HTTP  0
#define RELAY_FD_SOCKS 3

/* Less than the 64 that the VMM allows: a connection that is closed here may linger there. */
#define RELAY_CONNS   60u
#define RELAY_WAITING 256u
#define RELAY_WAIT_NS 10000000000ull
#define RELAY_HELD    65536u

/* Serves until it is killed. Returns an exit status when it cannot serve. */
int relay_main(const struct sockaddr *to, socklen_t len);
