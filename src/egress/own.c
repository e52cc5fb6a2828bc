/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "egress/own.h"

#include <errno.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

union own_addr {
	struct sockaddr sa;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
};

struct own_addrs {
	size_t n;
	union own_addr v[];
};

static socklen_t addr_len(const struct sockaddr *sa)
{
	if (sa->sa_family == AF_INET)
		return sizeof(struct sockaddr_in);
	return sa->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : 0;
}

/* Without port and zone. sa may lie in a buffer of another type: copied. */
static bool addr_same(const struct sockaddr *sa, const union own_addr *own)
{
	union own_addr a = {0};

	if (sa->sa_family != own->sa.sa_family)
		return false;
	memcpy(&a, sa, addr_len(sa));
	if (sa->sa_family == AF_INET)
		return a.in.sin_addr.s_addr == own->in.sin_addr.s_addr;
	return memcmp(&a.in6.sin6_addr, &own->in6.sin6_addr, sizeof(a.in6.sin6_addr)) == 0;
}

int own_learn(struct own_addrs **out, struct err *err)
{
	struct ifaddrs *list, *i;
	struct own_addrs *o;
	size_t n = 0;

	*out = NULL;
	if (getifaddrs(&list) < 0)
		return err_set(err, errno, "cannot list the addresses of this host");
	for (i = list; i; i = i->ifa_next)
		n++;
	o = calloc(1, sizeof(*o) + n * sizeof(o->v[0]));
	for (i = list; o && i; i = i->ifa_next)
		if (i->ifa_addr && addr_len(i->ifa_addr))
			memcpy(&o->v[o->n++], i->ifa_addr, addr_len(i->ifa_addr));
	freeifaddrs(list);
	*out = o;
	return o ? 0 : err_set(err, ENOMEM, "addresses of this host");
}

void own_free(struct own_addrs *o)
{
	free(o);
}

enum own_way own_way(const struct own_addrs *o, const struct sockaddr *sa)
{
	_cleanup_fd int fd = -1;
	union own_addr source = {0};
	socklen_t len = sizeof(source);

	for (size_t i = 0; i < o->n; i++)
		if (addr_same(sa, &o->v[i]))
			return OWN_ITSELF;
	/* Connecting a datagram socket sends nothing. */
	fd = socket(sa->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, sa, addr_len(sa)) < 0)
		return OWN_NO_WAY;
	if (getsockname(fd, &source.sa, &len) == 0 && addr_same(sa, &source))
		return OWN_ITSELF;
	return OWN_ELSEWHERE;
}
