/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Routes that end in this host, as the kernel lists them: those of its interfaces' addresses, of
 * anycast, and of prefixes that somebody has made local (`ip route add local PREFIX dev lo`).
 *
 * Of the tables local and main only, which every destination is looked up in. Others are for what
 * a rule picks out, by marks most of the time (a transparent proxy has a local route for all
 * addresses there), and own_way() sees of them what it can.
 */
#define _GNU_SOURCE
#include "egress/own_impl.h"

#include "lib/io.h"

#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef SOL_NETLINK
#define SOL_NETLINK 270
#endif

#define ANSWER_MAX 65536u

static int add_prefix(struct own_addrs **o, const struct own_prefix *p)
{
	struct own_addrs *new = *o;
	size_t cap = new ? new->cap : 0;

	if (!new || new->n == cap) {
		cap = cap ? 2 * cap : 64;
		if (cap > OWN_PREFIXES_MAX)
			return -E2BIG;
		new = realloc(new, sizeof(*new) + cap * sizeof(new->v[0]));
		if (!new)
			return -ENOMEM;
		if (!*o)
			new->n = 0;
		new->cap = cap;
		*o = new;
	}
	new->v[new->n++] = *p;
	return 0;
}

/* One route of an answer. */
static int take_route(struct own_addrs **o, struct nlmsghdr *m, int family)
{
	struct rtmsg *r = NLMSG_DATA(m);
	int len = (int)m->nlmsg_len - (int)NLMSG_LENGTH(sizeof(*r));
	struct own_prefix p = {.family = family};
	size_t size = family == AF_INET ? 4 : 16;
	uint32_t table;

	if (len < 0 || r->rtm_family != family || r->rtm_dst_len > 8 * size ||
	    (r->rtm_type != RTN_LOCAL && r->rtm_type != RTN_ANYCAST))
		return 0;
	table = r->rtm_table;
	p.bits = r->rtm_dst_len;
	for (struct rtattr *a = RTM_RTA(r); RTA_OK(a, len); a = RTA_NEXT(a, len)) {
		if (a->rta_type == RTA_DST && RTA_PAYLOAD(a) == size)
			memcpy(p.bytes, RTA_DATA(a), size);
		if (a->rta_type == RTA_TABLE && RTA_PAYLOAD(a) == sizeof(table))
			memcpy(&table, RTA_DATA(a), sizeof(table));
	}
	if (table != RT_TABLE_LOCAL && table != RT_TABLE_MAIN)
		return 0;
	return add_prefix(o, &p);
}

/* The end of an answer has an errno of the whole: what came before it may not be all. */
static int answer_status(struct nlmsghdr *m)
{
	int status = 0;

	if (m->nlmsg_len >= NLMSG_LENGTH(sizeof(status)))
		memcpy(&status, NLMSG_DATA(m), sizeof(status));
	return status < 0 ? status : 0;
}

/* The messages of one datagram: 1: there are more, 0: that was all, -errno. */
static int take_answer(struct own_addrs **o, char *buf, size_t n, int family)
{
	for (size_t at = 0; at + sizeof(struct nlmsghdr) <= n;) {
		struct nlmsghdr *m = (struct nlmsghdr *)(void *)(buf + at);
		int rc = 0;

		if (m->nlmsg_len < sizeof(*m) || m->nlmsg_len > n - at)
			return -EPROTO;
		at += NLMSG_ALIGN(m->nlmsg_len);
		/* What changed meanwhile may be missing. */
		if (m->nlmsg_flags & NLM_F_DUMP_INTR)
			return -EAGAIN;
		if (m->nlmsg_type == NLMSG_DONE)
			return answer_status(m);
		if (m->nlmsg_type == NLMSG_ERROR) {
			const struct nlmsgerr *e = NLMSG_DATA(m);

			return m->nlmsg_len < NLMSG_LENGTH(sizeof(*e)) || !e->error ? -EPROTO
										    : e->error;
		}
		if (m->nlmsg_type == RTM_NEWROUTE)
			rc = take_route(o, m, family);
		if (rc < 0)
			return rc;
	}
	return 1;
}

static int ask_routes(int fd, struct own_addrs **o, int family, int type)
{
	struct {
		struct nlmsghdr h;
		struct rtmsg r;
	} ask = {
		.h = {.nlmsg_len = sizeof(ask),
		      .nlmsg_type = RTM_GETROUTE,
		      .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
		.r = {.rtm_family = (unsigned char)family, .rtm_type = (unsigned char)type},
	};
	_cleanup_free char *buf = malloc(ANSWER_MAX);
	int rc = 1;

	if (!buf)
		return -ENOMEM;
	if (send(fd, &ask, sizeof(ask), 0) != (ssize_t)sizeof(ask))
		return -errno;
	while (rc > 0) {
		ssize_t n = recv(fd, buf, ANSWER_MAX, MSG_TRUNC);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0 || (size_t)n > ANSWER_MAX)
			return n < 0 ? -errno : -EMSGSIZE;
		rc = take_answer(o, buf, (size_t)n, family);
	}
	/* No such family here. */
	return rc == -EAFNOSUPPORT || rc == -EOPNOTSUPP ? 0 : rc;
}

static int learn_once(struct own_addrs **o)
{
	static const int families[] = {AF_INET, AF_INET6}, types[] = {RTN_LOCAL, RTN_ANYCAST};
	_cleanup_fd int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	const int one = 1;
	int rc = 0;

	if (fd < 0)
		return -errno;
	if (*o)
		(*o)->n = 0; /* of an answer that was not whole */
	/* That the kernel sends no others than are asked for; a host may have a million of them. */
	setsockopt(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &one, sizeof(one));
	for (size_t f = 0; f < ARRAY_SIZE(families) && rc == 0; f++)
		for (size_t t = 0; t < ARRAY_SIZE(types) && rc == 0; t++)
			rc = ask_routes(fd, o, families[f], types[t]);
	return rc;
}

int own_learn_routes(struct own_addrs **o)
{
	int rc = -EAGAIN;

	for (int i = 0; i < 10 && rc == -EAGAIN; i++)
		rc = learn_once(o);
	return rc;
}
