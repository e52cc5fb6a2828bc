/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Addresses of this host itself. A name may lead to one of them, public as it is;
 * a guest would then reach what listens here, and from within the host's
 * firewall. So they are refused, unless a range of the operator allows them.
 *
 * They are the prefixes of the kernel's local routes, asked for once, before the jail: a jail with
 * a netlink socket would tell more of the host than that. One that came later is told by its
 * route: the kernel takes it as the source of what is sent to it, or it is reached through lo. Not
 * seen is a later route for a prefix, over another interface than lo or (IPv4) with a source of its
 * own, and what only leads back here from elsewhere (a translated address of a cloud).
 *
 * Thread: any; constant once it is made. fork: plain memory.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <sys/socket.h>

struct own_addrs;

enum own_way {
	OWN_NO_WAY, /* this host has no route there */
	OWN_ITSELF,
	OWN_UNKNOWN, /* it could not be asked: no descriptor, no memory, no port */
	OWN_ELSEWHERE,
};

/* 0; -errno with *err filled. */
__must_check int own_learn(struct own_addrs **out, struct err *err);
void own_free(struct own_addrs *o);

/* Where an AF_INET or AF_INET6 address leads. Sends nothing. */
enum own_way own_way(const struct own_addrs *o, const struct sockaddr *sa);
