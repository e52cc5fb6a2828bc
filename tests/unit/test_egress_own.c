/* SPDX-License-Identifier: Apache-2.0 */
/* Which addresses are this host's own, when all is well and when nothing can be asked. */
#define _GNU_SOURCE
#include "unit.h"

#include "egress/own_impl.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>

#define ROUTES_AT_ONCE 1000u

/* A kernel that answers what a test says; else the real one does. */
static struct {
	bool plays;
	uint32_t routes;   /* local ones of IPv4: 10.0.0.0 and on */
	int status;        /* with which answers end */
	int interruptions; /* answers that are not whole, to begin with */
	/* Of the answer under way. */
	uint32_t left;
	int asked;
} kernel;

ssize_t __real_send(int fd, const void *buf, size_t n, int flags);
ssize_t __real_recv(int fd, void *buf, size_t n, int flags);
ssize_t __wrap_send(int fd, const void *buf, size_t n, int flags);
ssize_t __wrap_recv(int fd, void *buf, size_t n, int flags);

struct route_message {
	struct nlmsghdr h;
	struct rtmsg r;
	struct rtattr a;
	uint32_t to;
};

ssize_t __wrap_send(int fd, const void *buf, size_t n, int flags)
{
	const struct route_message *m = buf;

	if (!kernel.plays)
		return __real_send(fd, buf, n, flags);
	kernel.asked++;
	kernel.left = m->r.rtm_family == AF_INET && m->r.rtm_type == RTN_LOCAL ? kernel.routes : 0;
	return (ssize_t)n;
}

static ssize_t answer_end(void *buf)
{
	struct {
		struct nlmsghdr h;
		int status;
	} end = {
		{.nlmsg_len = sizeof(end), .nlmsg_type = NLMSG_DONE},
		kernel.status,
	};

	if (kernel.interruptions) {
		kernel.interruptions--;
		end.h.nlmsg_flags = NLM_F_DUMP_INTR;
	}
	memcpy(buf, &end, sizeof(end));
	return sizeof(end);
}

ssize_t __wrap_recv(int fd, void *buf, size_t n, int flags)
{
	struct route_message *m = buf;
	uint32_t some = kernel.left < ROUTES_AT_ONCE ? kernel.left : ROUTES_AT_ONCE;

	if (!kernel.plays)
		return __real_recv(fd, buf, n, flags);
	if (some == 0)
		return answer_end(buf);
	assert_true(some * sizeof(*m) <= n);
	for (uint32_t i = 0; i < some; i++)
		m[i] = (struct route_message){
			{.nlmsg_len = sizeof(*m), .nlmsg_type = RTM_NEWROUTE},
			{.rtm_family = AF_INET,
			 .rtm_dst_len = 32,
			 .rtm_type = RTN_LOCAL,
			 .rtm_table = RT_TABLE_LOCAL},
			{.rta_len = RTA_LENGTH(4), .rta_type = RTA_DST},
			htonl(0x0a000000u + --kernel.left),
		};
	return (ssize_t)(some * sizeof(*m));
}

static enum own_way way(const struct own_addrs *o, const char *text)
{
	union {
		struct sockaddr sa;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	} a = {0};

	a.sa.sa_family = strchr(text, ':') ? AF_INET6 : AF_INET;
	if (a.sa.sa_family == AF_INET)
		assert_int_equal(inet_pton(AF_INET, text, &a.in.sin_addr), 1);
	else
		assert_int_equal(inet_pton(AF_INET6, text, &a.in6.sin6_addr), 1);
	a.in.sin_port = htons(443);
	return own_way(o, &a.sa);
}

static struct own_addrs *learn(void)
{
	struct own_addrs *o;
	struct err err = {0};

	assert_int_equal(own_learn(&o, &err), 0);
	assert_non_null(o);
	return o;
}

static void test_loopback_is_a_prefix(void **state)
{
	struct own_addrs *o = learn();

	(void)state;
	assert_int_equal(way(o, "127.0.0.1"), OWN_ITSELF);
	assert_int_equal(way(o, "127.255.1.2"), OWN_ITSELF);
	assert_int_not_equal(way(o, "128.0.0.1"), OWN_ITSELF);
	assert_int_not_equal(way(o, "126.255.255.255"), OWN_ITSELF);
	own_free(o);
}

/* Without a descriptor nobody can tell: that is not "no way", which would be tried. */
static void test_without_descriptors(void **state)
{
	struct own_addrs *o = learn();
	struct rlimit old, none;

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	none = (struct rlimit){0, old.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	assert_int_equal(way(o, "192.0.2.1"), OWN_UNKNOWN);
	assert_int_equal(way(o, "2001:db8::1"), OWN_UNKNOWN);
	assert_int_equal(way(o, "127.0.0.1"), OWN_ITSELF);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_not_equal(way(o, "192.0.2.1"), OWN_UNKNOWN);
	own_free(o);
}

/* An answer that says at its end that it is none. */
static void test_a_bad_end(void **state)
{
	struct own_addrs *o;
	struct err err = {0};

	(void)state;
	kernel = (typeof(kernel)){.plays = true, .routes = 10, .status = -ENOBUFS};
	assert_int_equal(own_learn(&o, &err), -ENOBUFS);
	assert_null(o);
	assert_int_equal(kernel.asked, 1);
	kernel = (typeof(kernel)){0};
}

/* Routes that change meanwhile: what was learned of them before is not kept beside the rest. */
static void test_once_more(void **state)
{
	struct own_addrs *o;
	struct err err = {0};

	(void)state;
	kernel = (typeof(kernel)){
		.plays = true, .routes = OWN_PREFIXES_MAX - ROUTES_AT_ONCE, .interruptions = 9};
	assert_int_equal(own_learn(&o, &err), 0);
	assert_int_equal(o->n, kernel.routes);
	assert_int_equal(way(o, "10.1.0.1"), OWN_ITSELF);
	own_free(o);

	kernel = (typeof(kernel)){.plays = true, .routes = 1, .interruptions = 10};
	assert_int_equal(own_learn(&o, &err), -EAGAIN);
	kernel = (typeof(kernel)){0};
}

/* Some of them alone would make others pass for another host's. */
static void test_too_many(void **state)
{
	struct own_addrs *o;
	struct err err = {0};

	(void)state;
	kernel = (typeof(kernel)){.plays = true, .routes = OWN_PREFIXES_MAX};
	assert_int_equal(own_learn(&o, &err), 0);
	assert_int_equal(o->n, OWN_PREFIXES_MAX);
	own_free(o);
	kernel = (typeof(kernel)){.plays = true, .routes = OWN_PREFIXES_MAX + 1};
	assert_int_equal(own_learn(&o, &err), -E2BIG);
	assert_non_null(strstr(err.msg, "more than 131072 routes to itself"));
	kernel = (typeof(kernel)){0};
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_loopback_is_a_prefix),
		cmocka_unit_test(test_without_descriptors),
		cmocka_unit_test(test_a_bad_end),
		cmocka_unit_test(test_once_more),
		cmocka_unit_test(test_too_many),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
