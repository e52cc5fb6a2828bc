/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Key comparison and the browser check. Stateless.
 */
#include "daemon/auth.h"

#include <arpa/inet.h>
#include <string.h>
#include <strings.h>

/* Every byte of the given text is looked at, whatever the key is; only lengths show in time. */
static bool key_equal(const char *key, const char *given, size_t given_len)
{
	size_t key_len = strlen(key);
	volatile unsigned char diff = key_len != given_len;

	for (size_t i = 0; i < given_len; i++)
		diff |= (unsigned char)given[i] ^ (unsigned char)key[key_len ? i % key_len : 0];
	return diff == 0;
}

/* Host part of "host[:port]" is an address literal or localhost: no name that DNS could rebind. */
static bool host_is_literal(const char *host)
{
	unsigned char addr[sizeof(struct in6_addr)];
	const char *end = host[0] == '[' ? strchr(host, ']') : strchr(host, ':');
	size_t len = end ? (size_t)(end - host) : strlen(host);
	char name[64];

	if (host[0] == '[') {
		host++;
		len--;
	}
	if (len == 0 || len >= sizeof(name))
		return false;
	memcpy(name, host, len);
	name[len] = '\0';
	return strcasecmp(name, "localhost") == 0 || inet_pton(AF_INET, name, addr) == 1 ||
	       inet_pton(AF_INET6, name, addr) == 1;
}

/* The address that whoever forwards to us is known by, its port given or not. */
static bool host_is_public(const struct config *c, const char *host)
{
	const char *colon = c->public_addr ? strrchr(c->public_addr, ':') : NULL;
	size_t len = strlen(host);

	return colon && (strcasecmp(host, c->public_addr) == 0 ||
			 (len == (size_t)(colon - c->public_addr) &&
			  strncasecmp(host, c->public_addr, len) == 0));
}

static bool is_loopback(const char *addr)
{
	return strncmp(addr, "127.", 4) == 0 || strncmp(addr, "[::1]", 5) == 0 ||
	       strncasecmp(addr, "localhost:", 10) == 0;
}

/*
 * Whether names are looked at. On a public address that is open to everybody any name may be right,
 * as behind a forwarder that does not say how it is called.
 */
static bool names_matter(const struct config *c)
{
	if (c->trust_forward)
		return c->public_addr && (!c->auth_disabled || is_loopback(c->public_addr));
	return !c->auth_disabled || c->loopback;
}

/* A page served from the address that it calls; anything else is foreign. */
static bool origin_is_host(const char *origin, const char *host)
{
	const char *sep = strstr(origin, "://");

	return sep && host && strcasecmp(sep + 3, host) == 0;
}

enum auth_result auth_check(const struct config *c, const char *authorization, const char *origin,
			    const char *host, unsigned int *key)
{
	unsigned int found = 0, which = 0;
	size_t len;

	if (!c->auth) {
		if (origin && !origin_is_host(origin, host))
			return AUTH_ORIGIN;
		if (host && names_matter(c) && !host_is_literal(host) && !host_is_public(c, host))
			return AUTH_ORIGIN;
		return AUTH_OK;
	}
	if (!authorization || strncasecmp(authorization, "Bearer", 6) != 0 ||
	    authorization[6] != ' ')
		return AUTH_MISSING;
	authorization += 6 + strspn(authorization + 6, " ");
	len = strlen(authorization);
	while (len && (authorization[len - 1] == ' ' || authorization[len - 1] == '\t'))
		len--;
	if (len == 0)
		return AUTH_MISSING;
	/* All of them, and no branch says which. */
	for (unsigned int i = 0; i < c->nkeys; i++) {
		unsigned int equal = key_equal(c->keys[i], authorization, len);

		found |= equal;
		which += equal * (i - which);
	}
	*key = which;
	return found ? AUTH_OK : AUTH_INVALID;
}
