/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pure parts of `podflare shell`: replies in pieces and broken ones, addresses
 * of the daemon, the escape of the keyboard.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "cli/endpoint.h"
#include "cli/http_reply.h"
#include "cli/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* --- replies --- */

/* A reply in pieces of each size, then the end of the connection: the same each time. */
static void reply(const char *text, int status, const char *body, const char *rest)
{
	size_t len = strlen(text);

	for (size_t piece = 1; piece <= len; piece++) {
		struct http_reply r;
		size_t at = 0;

		http_reply_init(&r, 1000);
		while (at < len && !http_reply_done(&r)) {
			size_t n = len - at < piece ? len - at : piece;
			ssize_t took = http_reply_feed(&r, text + at, n);

			assert_true(took >= 0);
			assert_true((size_t)took == n || http_reply_done(&r));
			at += (size_t)took;
		}
		assert_int_equal(http_reply_end(&r), 0);
		assert_int_equal(r.status, status);
		assert_int_equal(buf_len(&r.body), strlen(body));
		assert_memory_equal(buf_len(&r.body) ? (const char *)buf_data(&r.body) : "", body,
				    strlen(body));
		assert_string_equal(text + at, rest);
		http_reply_free(&r);
	}
}

static void test_replies(void **state)
{
	(void)state;
	reply("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloXY", 200, "hello", "XY");
	reply("HTTP/1.1 200 OK\ncontent-length:5 \n\nhello", 200, "hello", "");
	reply("HTTP/1.1 204 No Content\r\n\r\nXY", 204, "", "XY");
	reply("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nXY", 200, "", "XY");
	reply("HTTP/1.0 404 Not Found\r\nX: y\r\n\r\nall of it", 404, "all of it", "");
	reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	      "3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nXY",
	      200, "abc0123456789", "XY");
	reply("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\nXY",
	      101, "", "XY");
}

static int broken(const char *text, size_t len)
{
	struct http_reply r;
	ssize_t rc;

	http_reply_init(&r, 8);
	rc = http_reply_feed(&r, text, len);
	if (rc >= 0)
		rc = http_reply_end(&r);
	http_reply_free(&r);
	return (int)rc;
}

#define BROKEN(text) broken(text, sizeof(text) - 1)

static void test_broken_replies(void **state)
{
	char *big = test_malloc(HTTP_REPLY_HEAD_MAX + 100);

	(void)state;
	assert_int_equal(BROKEN("SSH-2.0-OpenSSH\r\n\r\n"), -EPROTO);
	assert_int_equal(BROKEN("\r\n"), -EPROTO);
	assert_int_equal(BROKEN("HTTP/1.1 2x0 OK\r\n\r\n"), -EPROTO);
	assert_int_equal(BROKEN("HTTP/1.1\r\n\r\n"), -EPROTO);
	assert_int_equal(BROKEN("HTTP/1.1 200\0 OK\r\n\r\n"), -EPROTO);
	assert_int_equal(BROKEN("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), -EPROTO);
	assert_int_equal(BROKEN("HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\n"), -EPROTO);
	assert_int_equal(BROKEN("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"), -EPROTO);
	assert_int_equal(BROKEN("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"),
			 -EPROTO);
	assert_int_equal(
		BROKEN("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n"),
		-EPROTO);
	assert_int_equal(BROKEN("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
				"fffffffffffffffff\r\n"),
			 -EPROTO);
	/* Larger than the bounds; cut off. */
	assert_int_equal(BROKEN("HTTP/1.1 200 OK\r\n\r\n123456789"), -EMSGSIZE);
	assert_int_equal(BROKEN("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell"), -ECONNRESET);
	assert_int_equal(BROKEN("HTTP/1.1 200 OK\r\n"), -ECONNRESET);
	assert_int_equal(BROKEN(""), -ECONNRESET);
	assert_int_equal(BROKEN("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"),
			 -ECONNRESET);
	memset(big, 'a', HTTP_REPLY_HEAD_MAX + 100);
	assert_int_equal(broken(big, HTTP_REPLY_HEAD_MAX + 100), -EMSGSIZE);
	test_free(big);
}

static void test_headers(void **state)
{
	static const char text[] =
		"HTTP/1.1 101 X\r\nAB: 1\r\nA:\t two  words\r\nB:\r\nA: 3\r\n\r\n";
	struct http_reply r;

	(void)state;
	http_reply_init(&r, 8);
	assert_null(http_reply_header(&r, "A"));
	assert_int_equal(http_reply_feed(&r, text, 20), 20);
	assert_null(http_reply_header(&r, "AB"));
	assert_int_equal(http_reply_feed(&r, text + 20, sizeof(text) - 21), sizeof(text) - 21);
	assert_string_equal(http_reply_header(&r, "a"), "two  words");
	assert_string_equal(http_reply_header(&r, "B"), "");
	assert_null(http_reply_header(&r, "C"));
	http_reply_free(&r);
}

/* --- addresses --- */

static void test_endpoints(void **state)
{
	static const struct {
		const char *url, *host, *port, *authority;
	} good[] = {
		{"http://127.0.0.1:7070", "127.0.0.1", "7070", "127.0.0.1:7070"},
		{"HTTP://Box.example:8080/", "Box.example", "8080", "Box.example:8080"},
		{"localhost:1", "localhost", "1", "localhost:1"},
		{"box", "box", "80", "box:80"},
		{"http://[::1]:7070", "::1", "7070", "[::1]:7070"},
		{"[fe80::1%eth0]/", "fe80::1%eth0", "80", "[fe80::1%eth0]:80"},
	};
	static const char *const bad[] = {"",
					  "http://",
					  "http://:7070",
					  "http://h:",
					  "http://h:0",
					  "http://h:65536",
					  "http://h:12345678901234567890",
					  "http://h:7x",
					  "http://h/v1",
					  "http://h?x",
					  "http://[::1",
					  "http://[::1]x:1",
					  "http://a b:1",
					  "http://a\r\nX: y",
					  "http://user@h:1",
					  "http://::1:7070"};
	struct err err = {0};
	struct endpoint e;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		assert_int_equal(endpoint_parse(&e, good[i].url, &err), 0);
		assert_string_equal(e.host, good[i].host);
		assert_string_equal(e.port, good[i].port);
		assert_string_equal(e.authority, good[i].authority);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(endpoint_parse(&e, bad[i], &err), -EINVAL);
	assert_int_equal(endpoint_parse(&e, "https://h", &err), -EPROTONOSUPPORT);
	assert_non_null(strstr(err.msg, "plain http only"));
}

static void test_environment(void **state)
{
	struct err err = {0};
	char key[600];
	struct endpoint e;

	(void)state;
	unsetenv("PODFLARE_HOSTD_URL");
	unsetenv("PODFLARE_HOST");
	unsetenv("PODFLARE_API_KEY");
	assert_int_equal(endpoint_from_env(&e, &err), 0);
	assert_string_equal(e.url, "http://127.0.0.1:7070");
	assert_string_equal(e.key, "");
	setenv("PODFLARE_HOST", "two:2", 1);
	setenv("PODFLARE_HOSTD_URL", "", 1);
	setenv("PODFLARE_API_KEY", " \tk-1\n", 1);
	assert_int_equal(endpoint_from_env(&e, &err), 0);
	assert_string_equal(e.url, "http://two:2");
	assert_string_equal(e.key, "k-1");
	setenv("PODFLARE_HOSTD_URL", "one:1", 1);
	assert_int_equal(endpoint_from_env(&e, &err), 0);
	assert_string_equal(e.url, "http://one:1");
	setenv("PODFLARE_API_KEY", "a\r\nb", 1);
	assert_int_equal(endpoint_from_env(&e, &err), -EINVAL);
	memset(key, 'k', sizeof(key));
	key[sizeof(key) - 1] = '\0';
	setenv("PODFLARE_API_KEY", key, 1);
	assert_int_equal(endpoint_from_env(&e, &err), -EINVAL);
	unsetenv("PODFLARE_API_KEY");
}

/* --- keyboard --- */

/* Typed in pieces of each size: what is sent, and whether it leaves. */
static void typed(const char *keys, const char *sent, bool leaves)
{
	size_t len = strlen(keys);

	for (size_t piece = 1; piece <= len; piece++) {
		struct terminal_escape e = {0};
		char out[100] = "";
		size_t n = 0;
		bool leave = false;

		for (size_t at = 0; at < len && !leave; at += piece) {
			size_t k = len - at < piece ? len - at : piece;

			n += terminal_escape_scan(&e, (uint8_t *)out + n,
						  (const uint8_t *)keys + at, k, &leave);
		}
		out[n] = '\0';
		assert_string_equal(out, sent);
		assert_true(leave == leaves);
	}
}

static void test_escape(void **state)
{
	(void)state;
	typed("ls ~.x\r", "ls ~.x\r", false);
	typed("~.more", "", true);
	typed("ls\r~.", "ls\r", true);
	typed("ls\n~.", "ls\n", true);
	typed("~~.\r~/bin\r", "~.\r~/bin\r", false);
	typed("~\r~.", "~\r", true);
	typed("~a~.", "~a~.", false);
}

/* --- output --- */

/* A copy that does not block, of a pipe; a file goes on where it was. */
static void test_open_output(void **state)
{
	char name[] = "/tmp/podflare-test-XXXXXX", text[8] = "";
	int p[2], fd, file;

	(void)state;
	assert_int_equal(pipe(p), 0);
	fd = terminal_open_output(p[1]);
	assert_true(fd >= 0);
	assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
	assert_false(fcntl(p[1], F_GETFL) & O_NONBLOCK);
	assert_int_equal(write(fd, "x", 1), 1);
	assert_int_equal(read(p[0], text, 1), 1);
	close(fd);
	close(p[0]);
	close(p[1]);
	file = mkstemp(name);
	assert_true(file >= 0);
	assert_int_equal(write(file, "ab", 2), 2);
	fd = terminal_open_output(file);
	assert_int_equal(write(fd, "cd", 2), 2);
	assert_int_equal(pread(file, text, sizeof(text), 0), 4);
	assert_memory_equal(text, "abcd", 4);
	close(fd);
	close(file);
	unlink(name);
	assert_int_equal(terminal_open_output(-1), -EBADF);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_replies),     cmocka_unit_test(test_broken_replies),
		cmocka_unit_test(test_headers),     cmocka_unit_test(test_endpoints),
		cmocka_unit_test(test_environment), cmocka_unit_test(test_escape),
		cmocka_unit_test(test_open_output),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
