/* SPDX-License-Identifier: Apache-2.0 */
/*
 * URL, key and connection of the daemon. No state; one thread.
 */
#include "cli/endpoint.h"

#include "cli/cli.h"
#include "lib/io.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#define CONNECT_NS (10 * UINT64_C(1000000000))

/* Takes the scheme away; https and all others are refused. */
static int parse_scheme(const char **url, struct err *err)
{
	const char *sep = strstr(*url, "://");

	if (!sep)
		return 0;
	if (strncasecmp(*url, "https://", 8) == 0)
		return err_text(err, EPROTONOSUPPORT,
				"%s: podflare speaks plain http only; reach the daemon "
				"through a tunnel (ssh -L 7070:127.0.0.1:7070 HOST) and use "
				"http://127.0.0.1:7070",
				*url);
	if (strncasecmp(*url, "http://", 7) != 0)
		return err_text(err, EPROTONOSUPPORT, "%s: the scheme must be http", *url);
	*url = sep + 3;
	return 0;
}

static bool host_ok(const char *host)
{
	for (; *host; host++)
		if (!isalnum((unsigned char)*host) && !strchr("-._:%", *host))
			return false;
	return true;
}

int endpoint_parse(struct endpoint *e, const char *url, struct err *err)
{
	const char *at = url, *end, *port;
	size_t len;
	uint64_t n;
	int rc = parse_scheme(&at, err);

	if (rc < 0)
		return rc;
	len = strcspn(at, "/?#");
	if (at[len] && strcmp(at + len, "/") != 0)
		return err_text(err, EINVAL, "'%s' is not http://HOST:PORT: it has a path", url);
	end = at + len;
	if (*at == '[') {
		at++;
		len = strcspn(at, "]/");
		if (at[len] != ']')
			return err_text(err, EINVAL, "'%s': ']' is missing", url);
		port = at + len + 1;
	} else {
		len = strcspn(at, ":/");
		port = at + len;
	}
	if (len == 0 || len >= sizeof(e->host) || (port < end && *port != ':'))
		return err_text(err, EINVAL, "'%s' is not http://HOST:PORT", url);
	memcpy(e->host, at, len);
	e->host[len] = '\0';
	snprintf(e->port, sizeof(e->port), "80");
	if (port < end) {
		char text[8] = "";

		port++;
		if ((size_t)(end - port) < sizeof(text))
			memcpy(text, port, (size_t)(end - port));
		rc = cli_parse_number("the port of the daemon", text, 1, 65535, &n, err);
		if (rc < 0)
			return rc;
		snprintf(e->port, sizeof(e->port), "%u", (unsigned)n);
	}
	if (!host_ok(e->host))
		return err_text(err, EINVAL, "'%s' is not http://HOST:PORT", url);
	snprintf(e->authority, sizeof(e->authority), strchr(e->host, ':') ? "[%s]:%s" : "%s:%s",
		 e->host, e->port);
	snprintf(e->url, sizeof(e->url), "http://%s", e->authority);
	return 0;
}

int endpoint_from_env(struct endpoint *e, struct err *err)
{
	static const char *const names[] = {"PODFLARE_HOSTD_URL", "PODFLARE_HOST"};
	const char *url = ENDPOINT_DEFAULT, *key = getenv("PODFLARE_API_KEY");
	size_t len;

	*e = (struct endpoint){0};
	for (size_t i = ARRAY_SIZE(names); i > 0; i--) {
		const char *v = getenv(names[i - 1]);

		if (v && *v)
			url = v;
	}
	key = key ? key + strspn(key, " \t\r\n") : "";
	len = strlen(key);
	while (len && strchr(" \t\r\n", key[len - 1]))
		len--;
	if (len >= sizeof(e->key))
		return err_text(err, EINVAL, "PODFLARE_API_KEY is too long");
	for (size_t i = 0; i < len; i++) /* it goes into a header */
		if (key[i] <= ' ' || key[i] > '~')
			return err_text(err, EINVAL,
					"PODFLARE_API_KEY has characters that no key has");
	memcpy(e->key, key, len);
	return endpoint_parse(e, url, err);
}

/* By its text: what a name leads to is asked for later, and a name of loopback is this one alone.
 */
static bool is_loopback(const char *host)
{
	struct in6_addr six;
	struct in_addr four;

	if (inet_pton(AF_INET, host, &four) == 1)
		return ntohl(four.s_addr) >> 24 == 127;
	if (inet_pton(AF_INET6, host, &six) == 1)
		return IN6_IS_ADDR_LOOPBACK(&six) ||
		       (IN6_IS_ADDR_V4MAPPED(&six) && six.s6_addr[12] == 127);
	return strcasecmp(host, "localhost") == 0;
}

void endpoint_tell_key(const struct endpoint *e)
{
	if (e->key[0] && !is_loopback(e->host))
		cli_say("the key goes to %s unencrypted, and whoever is on the way can take it: a "
			"tunnel keeps it (ssh -L 7070:127.0.0.1:%s %s)",
			e->authority, e->port, e->host);
}

int endpoint_wait(int fd, short events, int stop_fd, uint64_t deadline_ns)
{
	for (;;) {
		struct pollfd p[] = {{.fd = fd, .events = events},
				     {.fd = stop_fd, .events = POLLIN}};
		uint64_t now = io_now_ns();
		int ms = -1, n;

		if (deadline_ns)
			ms = deadline_ns <= now ? 0 : (int)((deadline_ns - now + 999999) / 1000000);
		n = poll(p, ARRAY_SIZE(p), ms);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && p[1].revents)
			return -ECANCELED;
		if (n > 0)
			return 1;
		if (n == 0 && deadline_ns)
			return 0;
	}
}

/* The other side may vanish without a word, behind a tunnel for instance. */
static void keep_alive(int fd)
{
	static const struct {
		int level, option, value;
	} options[] = {
		{SOL_SOCKET, SO_KEEPALIVE, 1},          {IPPROTO_TCP, TCP_KEEPIDLE, 30},
		{IPPROTO_TCP, TCP_KEEPINTVL, 10},       {IPPROTO_TCP, TCP_KEEPCNT, 3},
		{IPPROTO_TCP, TCP_USER_TIMEOUT, 60000}, {IPPROTO_TCP, TCP_NODELAY, 1},
	};

	/* Best effort: without them all works, only later. */
	for (size_t i = 0; i < ARRAY_SIZE(options); i++)
		(void)setsockopt(fd, options[i].level, options[i].option, &options[i].value,
				 sizeof(options[i].value));
}

/* One address: 0 with *out, or -errno. */
static int connect_one(const struct addrinfo *a, int stop_fd, int *out)
{
	_cleanup_fd int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	socklen_t len = sizeof(int);
	int rc, e = 0;

	if (fd < 0)
		return -errno;
	if (connect(fd, a->ai_addr, a->ai_addrlen) < 0) {
		if (errno != EINPROGRESS)
			return -errno;
		rc = endpoint_wait(fd, POLLOUT, stop_fd, io_now_ns() + CONNECT_NS);
		if (rc <= 0)
			return rc < 0 ? rc : -ETIMEDOUT;
		if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &len) < 0)
			return -errno;
		if (e)
			return -e;
	}
	keep_alive(fd);
	*out = take_fd(&fd);
	return 0;
}

int endpoint_connect(const struct endpoint *e, int stop_fd, int *fd, struct err *err)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
	int rc = getaddrinfo(e->host, e->port, &hints, &list);

	if (rc != 0)
		return err_text(err, EHOSTUNREACH, "no address for %s: %s", e->host,
				gai_strerror(rc));
	rc = -EHOSTUNREACH;
	for (const struct addrinfo *a = list; a; a = a->ai_next) {
		rc = connect_one(a, stop_fd, fd);
		if (rc == 0 || rc == -ECANCELED)
			break;
	}
	freeaddrinfo(list);
	if (rc < 0)
		return err_text(err, -rc,
				"no podflare daemon answers at %s (%s): is `podflare serve` "
				"running? (another address: PODFLARE_HOSTD_URL)",
				e->url, strerror(-rc));
	return 0;
}
