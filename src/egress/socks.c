/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SOCKS5 greeting and request. Pure functions over the bytes that have come;
 * every length is checked against what is there before it is used. Any thread.
 */
#include "egress/socks.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#define CMD_CONNECT 1u

ssize_t socks_greeting(const uint8_t *p, size_t len)
{
	size_t n;

	if (len >= 1 && p[0] != SOCKS_VERSION)
		return -EPROTO;
	if (len < 2)
		return 0;
	n = 2 + (size_t)p[1];
	if (len < n)
		return 0;
	return p[1] && memchr(p + 2, SOCKS_NO_AUTH, p[1]) ? (ssize_t)n : -EACCES;
}

/* Bytes of the address behind the 4 of the head, its length byte included; 0: not known yet. */
static size_t address_bytes(const uint8_t *p, size_t len)
{
	switch (p[3]) {
	case SOCKS_IPV4:
		return 4;
	case SOCKS_IPV6:
		return 16;
	default: /* a name; the caller has refused other types */
		return len < 5 ? 0 : 1 + (size_t)p[4];
	}
}

ssize_t socks_request(const uint8_t *p, size_t len, struct socks_request *r)
{
	size_t n;

	if ((len >= 1 && p[0] != SOCKS_VERSION) || (len >= 3 && p[2] != 0))
		return -EPROTO;
	if (len >= 2 && p[1] != CMD_CONNECT)
		return -EOPNOTSUPP;
	if (len < 4)
		return 0;
	if (p[3] != SOCKS_IPV4 && p[3] != SOCKS_DOMAIN && p[3] != SOCKS_IPV6)
		return -EAFNOSUPPORT;
	n = address_bytes(p, len);
	if (n == 0 || len < 4 + n + 2)
		return 0;
	*r = (struct socks_request){.atyp = p[3]};
	if (r->atyp == SOCKS_DOMAIN) {
		r->host_len = n - 1;
		memcpy(r->host, p + 5, r->host_len);
	} else {
		inet_ntop(r->atyp == SOCKS_IPV4 ? AF_INET : AF_INET6, p + 4, r->host,
			  sizeof(r->host));
		r->host_len = strlen(r->host);
	}
	r->port = (uint16_t)(p[4 + n] << 8 | p[4 + n + 1]);
	return (ssize_t)(4 + n + 2);
}

void socks_reply(enum socks_reply code, uint8_t out[SOCKS_REPLY_BYTES])
{
	memset(out, 0, SOCKS_REPLY_BYTES);
	out[0] = SOCKS_VERSION;
	out[1] = (uint8_t)code;
	out[3] = SOCKS_IPV4;
}
