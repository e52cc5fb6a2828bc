/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "egress/own_impl.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOOPBACK_IFINDEX 1 /* of every network namespace */

union own_addr {
	struct sockaddr sa;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
};

static socklen_t addr_len(const struct sockaddr *sa)
{
	return sa->sa_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

/* sa may lie in a buffer of another type: copied. */
static void addr_bytes(const struct sockaddr *sa, uint8_t out[16])
{
	union own_addr a = {0};

	memcpy(&a, sa, addr_len(sa));
	memset(out, 0, 16);
	if (sa->sa_family == AF_INET)
		memcpy(out, &a.in.sin_addr, 4);
	else
		memcpy(out, &a.in6.sin6_addr, 16);
}

static bool prefix_has(const struct own_prefix *p, int family, const uint8_t *bytes)
{
	unsigned int whole = p->bits / 8, rest = p->bits % 8;

	return p->family == family && memcmp(p->bytes, bytes, whole) == 0 &&
	       (rest == 0 || ((p->bytes[whole] ^ bytes[whole]) >> (8 - rest)) == 0);
}

int own_learn(struct own_addrs **out, struct err *err)
{
	int rc;

	*out = NULL;
	rc = own_learn_routes(out);
	if (rc == 0 && !*out) /* no interface is up */
		*out = calloc(1, sizeof(**out));
	if (rc == 0 && *out)
		return 0;
	own_free(*out);
	*out = NULL;
	if (rc == -E2BIG)
		return err_text(
			err, E2BIG,
			"this host has more than %u routes to itself (ip route show table all "
			"type local), too many to tell its addresses from others'",
			OWN_PREFIXES_MAX);
	return err_set(err, rc < 0 ? -rc : ENOMEM, "cannot list the addresses of this host");
}

void own_free(struct own_addrs *o)
{
	free(o);
}

/* Of socket() and connect(): that there is no way, and not that it could not be looked for. */
static enum own_way no_way(int num)
{
	switch (num) {
	case ENETUNREACH:
	case EHOSTUNREACH:
	case ENETDOWN:
	case EADDRNOTAVAIL: /* no address of this host to send from */
	case EAFNOSUPPORT:  /* no such family here */
	case EACCES:        /* a route that prohibits it, or to a broadcast address */
	case EINVAL:        /* a route that swallows it */
		return OWN_NO_WAY;
	default:
		return OWN_UNKNOWN;
	}
}

/* Whether an IPv6 address is reached through lo, which an address of another host never is. */
static enum own_way way_by_loopback(const struct sockaddr *sa)
{
	_cleanup_fd int fd = socket(sa->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	const int lo = LOOPBACK_IFINDEX;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_BINDTOIFINDEX, &lo, sizeof(lo)) < 0)
		return OWN_UNKNOWN;
	if (connect(fd, sa, addr_len(sa)) == 0)
		return OWN_ITSELF;
	return no_way(errno) == OWN_NO_WAY ? OWN_ELSEWHERE : OWN_UNKNOWN;
}

enum own_way own_way(const struct own_addrs *o, const struct sockaddr *sa)
{
	uint8_t bytes[16], from[16];
	_cleanup_fd int fd = -1;
	union own_addr source = {0};
	socklen_t len = sizeof(source);

	addr_bytes(sa, bytes);
	for (size_t i = 0; i < o->n; i++)
		if (prefix_has(&o->v[i], sa->sa_family, bytes))
			return OWN_ITSELF;
	/* Connecting a datagram socket sends nothing. */
	fd = socket(sa->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, sa, addr_len(sa)) < 0)
		return no_way(errno);
	if (getsockname(fd, &source.sa, &len) < 0)
		return OWN_UNKNOWN;
	addr_bytes(&source.sa, from);
	if (memcmp(from, bytes, sizeof(bytes)) == 0)
		return OWN_ITSELF;
	/* To a local address IPv4 sends from it (but where its route says another), IPv6 from
	 * one that it has. */
	return sa->sa_family == AF_INET6 ? way_by_loopback(sa) : OWN_ELSEWHERE;
}
