/* SPDX-License-Identifier: Apache-2.0 */
/* Which addresses are this host's own, when all is well and when nothing can be asked. */
#define _GNU_SOURCE
#include "unit.h"

#include "egress/own.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/resource.h>

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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_loopback_is_a_prefix),
		cmocka_unit_test(test_without_descriptors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
