/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The address of the API: its text, when it needs keys, and that it is nobody else's while it is
 * reserved. Sockets are real ones of loopback.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "cli/addr.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void test_addresses(void **state)
{
	static const struct {
		const char *in, *out;
		bool loopback;
	} good[] = {
		{"127.0.0.1:7070", "127.0.0.1:7070", true},
		{"localhost:0", "127.0.0.1:0", true},
		{"127.9.9.9:65535", "127.9.9.9:65535", true},
		{"0.0.0.0:80", "0.0.0.0:80", false},
		{"10.1.2.3:80", "10.1.2.3:80", false},
		{"[::1]:80", "[::1]:80", true},
		{"[::]:80", "[::]:80", false},
		/* An IPv4 loopback in IPv6 clothes: better asked for keys than let through. */
		{"[::ffff:127.0.0.1]:80", "[::ffff:127.0.0.1]:80", false},
	};
	static const char *const bad[] = {
		"",
		"7070",
		":7070",
		"127.0.0.1",
		"127.0.0.1:",
		"127.0.0.1:-1",
		"127.0.0.1:1x",
		"127.0.0.1: 1",
		"1.2.3:80",
		"[::1:80",
		"::1:80",
		"[]:80",
		"host.example:80",
		"127.0.0.1:65536",
	};
	struct addr a;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		assert_int_equal(addr_parse(&a, good[i].in, NULL), 0);
		assert_string_equal(a.text, good[i].out);
		assert_int_equal(a.loopback, good[i].loopback);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct err err = {0};

		assert_int_equal(addr_parse(&a, bad[i], &err), -EINVAL);
		assert_true(err.msg[0] != '\0');
	}
}

static void test_keys_rule(void **state)
{
	static const struct {
		const char *addr, *keys, *disabled;
		int rc;
	} cases[] = {
		{"127.0.0.1:1", NULL, NULL, 0},   {"0.0.0.0:1", NULL, NULL, -EACCES},
		{"0.0.0.0:1", "", NULL, -EACCES}, {"0.0.0.0:1", " , ,", NULL, -EACCES},
		{"0.0.0.0:1", "key", NULL, 0},    {"0.0.0.0:1", ",key", NULL, 0},
		{"0.0.0.0:1", NULL, "1", 0},      {"0.0.0.0:1", NULL, "0", -EACCES},
		{"0.0.0.0:1", NULL, "", -EACCES}, {"[::]:1", NULL, NULL, -EACCES},
		{"[::1]:1", NULL, NULL, 0},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct addr a;

		unsetenv("PODFLARE_API_KEYS");
		unsetenv("PODFLARE_AUTH_DISABLED");
		if (cases[i].keys)
			setenv("PODFLARE_API_KEYS", cases[i].keys, 1);
		if (cases[i].disabled)
			setenv("PODFLARE_AUTH_DISABLED", cases[i].disabled, 1);
		assert_int_equal(addr_parse(&a, cases[i].addr, NULL), 0);
		assert_int_equal(addr_check_keys(&a, NULL), cases[i].rc);
	}
}

/* A socket that listens there, or -errno. */
static int listen_at(const struct addr *a, int reuse)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), rc;

	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse)), 0);
	rc = bind(fd, (const struct sockaddr *)&a->sa, a->len) < 0 || listen(fd, 1) < 0 ? -errno
											: fd;
	if (rc < 0)
		close(fd);
	return rc;
}

/* A reserved port refuses others, until a program is let in that says SO_REUSEADDR. */
static void test_reserved_port(void **state)
{
	struct addr a, again;
	struct err err = {0};
	int fd, taker, other;

	(void)state;
	assert_int_equal(addr_parse(&a, "127.0.0.1:0", NULL), 0);
	assert_int_equal(addr_reserve(&a, &fd, NULL), 0);
	assert_true(a.port != 0);
	assert_int_equal(listen_at(&a, 0), -EADDRINUSE);
	assert_int_equal(listen_at(&a, 1), -EADDRINUSE);
	assert_int_equal(addr_let_in(fd), 0);
	assert_int_equal(listen_at(&a, 0), -EADDRINUSE);
	taker = listen_at(&a, 1);
	assert_true(taker >= 0);
	assert_int_equal(addr_parse(&again, a.text, NULL), 0);
	assert_int_equal(addr_reserve(&again, &other, &err), -EADDRINUSE);
	assert_non_null(strstr(err.msg, a.text));
	close(taker);
	close(fd);
}

/* What an earlier service has left there (TIME_WAIT) is in nobody's way but a stranger's. */
static void test_reserved_port_after_another(void **state)
{
	struct addr a;
	int fd, server, client, peer, early, one = 1;

	(void)state;
	assert_int_equal(addr_parse(&a, "127.0.0.1:0", NULL), 0);
	assert_int_equal(addr_reserve(&a, &fd, NULL), 0);
	assert_int_equal(addr_let_in(fd), 0);
	server = listen_at(&a, 1);
	assert_true(server >= 0);
	client = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(connect(client, (struct sockaddr *)&a.sa, a.len), 0);
	peer = accept(server, NULL, NULL);
	assert_true(peer >= 0);
	close(peer); /* the first to close is the one that waits */
	close(client);
	close(server);
	close(fd);
	/* Somebody is there already, and has not listened so far. */
	early = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(setsockopt(early, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)), 0);
	assert_int_equal(bind(early, (struct sockaddr *)&a.sa, a.len), 0);

	assert_int_equal(addr_reserve(&a, &fd, NULL), 0);
	assert_int_equal(listen(early, 1), -1);
	assert_int_equal(errno, EADDRINUSE);
	close(early);
	assert_int_equal(listen_at(&a, 1), -EADDRINUSE);
	assert_int_equal(addr_let_in(fd), 0);
	server = listen_at(&a, 1);
	assert_true(server >= 0);
	close(server);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_addresses),
		cmocka_unit_test(test_keys_rule),
		cmocka_unit_test(test_reserved_port),
		cmocka_unit_test(test_reserved_port_after_another),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
