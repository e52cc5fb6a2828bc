/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parses and reserves the API's address. No state.
 */
#include "cli/addr.h"

#include "cli/cli.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Fills what follows from sa. */
static void addr_finish(struct addr *a)
{
	if (a->sa.ss_family == AF_INET6) {
		const struct sockaddr_in6 *a6 = (const void *)&a->sa;

		inet_ntop(AF_INET6, &a6->sin6_addr, a->host, sizeof(a->host));
		a->port = ntohs(a6->sin6_port);
		a->ipv6 = true;
		a->loopback = IN6_IS_ADDR_LOOPBACK(&a6->sin6_addr);
	} else {
		const struct sockaddr_in *a4 = (const void *)&a->sa;

		inet_ntop(AF_INET, &a4->sin_addr, a->host, sizeof(a->host));
		a->port = ntohs(a4->sin_port);
		a->loopback = ntohl(a4->sin_addr.s_addr) >> 24 == 127;
	}
	snprintf(a->text, sizeof(a->text), a->ipv6 ? "[%s]:%u" : "%s:%u", a->host, a->port);
}

int addr_parse(struct addr *a, const char *text, struct err *err)
{
	struct sockaddr_in6 *a6 = (void *)&a->sa;
	struct sockaddr_in *a4 = (void *)&a->sa;
	const char *colon = strrchr(text, ':');
	size_t len = colon ? (size_t)(colon - text) : 0;
	char host[64];
	uint64_t port;
	int rc;

	*a = (struct addr){0};
	if (len == 0 || len >= sizeof(host))
		return err_text(err, EINVAL, "--addr is HOST:PORT, not '%s'", text);
	rc = cli_parse_number("the port of --addr", colon + 1, 0, 65535, &port, err);
	if (rc < 0)
		return rc;
	memcpy(host, text, len);
	host[len] = '\0';
	if (strcmp(host, "localhost") == 0)
		strcpy(host, "127.0.0.1");
	if (host[0] == '[' && host[len - 1] == ']') {
		host[len - 1] = '\0';
		if (inet_pton(AF_INET6, host + 1, &a6->sin6_addr) != 1)
			return err_text(err, EINVAL, "'%s' is not an IPv6 address", host + 1);
		a6->sin6_family = AF_INET6;
		a6->sin6_port = htons((uint16_t)port);
		a->len = sizeof(*a6);
	} else {
		if (inet_pton(AF_INET, host, &a4->sin_addr) != 1)
			return err_text(
				err, EINVAL,
				"'%s' is not an IPv4 address, an [IPv6 address] or localhost",
				host);
		a4->sin_family = AF_INET;
		a4->sin_port = htons((uint16_t)port);
		a->len = sizeof(*a4);
	}
	addr_finish(a);
	return 0;
}

bool addr_has_keys(void)
{
	const char *keys = getenv("PODFLARE_API_KEYS");

	return keys && keys[strspn(keys, ", \t")] != '\0';
}

int addr_check_keys(const struct addr *a, struct err *err)
{
	const char *disabled = getenv("PODFLARE_AUTH_DISABLED");

	if (a->loopback || addr_has_keys() || (disabled && strcmp(disabled, "1") == 0))
		return 0;
	return err_text(err, EACCES,
			"refusing to listen on %s without keys: others can reach this address and "
			"would run code here; set PODFLARE_API_KEYS, or PODFLARE_AUTH_DISABLED=1 "
			"if that is what you want",
			a->text);
}

static int set_reuse(int fd, int value)
{
	return setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &value, sizeof(value)) < 0 ? -errno : 0;
}

int addr_let_in(int fd)
{
	return set_reuse(fd, 1);
}

/*
 * Beside a socket with SO_REUSEADDR that does not listen any other one of that kind may, of any
 * user: he would get the requests of our clients, with their keys. So ours has it no longer than it
 * takes to bind where connections of an earlier service still wait (TIME_WAIT).
 */
static int bind_alone(int fd, const struct addr *a)
{
	const struct sockaddr *sa = (const struct sockaddr *)&a->sa;
	int rc;

	if (bind(fd, sa, a->len) == 0)
		return 0;
	if (errno != EADDRINUSE)
		return -errno;
	rc = set_reuse(fd, 1);
	if (rc == 0 && bind(fd, sa, a->len) < 0)
		rc = -errno;
	return rc == 0 ? set_reuse(fd, 0) : rc;
}

int addr_reserve(struct addr *a, int *out, struct err *err)
{
	_cleanup_fd int fd = socket(a->sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int rc;

	if (fd < 0)
		return err_set(err, errno, "cannot make a socket");
	rc = bind_alone(fd, a);
	if (rc < 0) {
		if (rc == -EADDRINUSE)
			return err_text(err, EADDRINUSE,
					"%s is already in use by another program; choose another "
					"port with --addr",
					a->text);
		return err_set(err, -rc, "cannot listen on %s", a->text);
	}
	if (getsockname(fd, (struct sockaddr *)&a->sa, &a->len) < 0)
		return err_set(err, errno, "cannot read back the address %s", a->text);
	addr_finish(a);
	*out = take_fd(&fd);
	return 0;
}
