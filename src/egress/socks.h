/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Server side of SOCKS5 (RFC 1928) as a parser of bytes: no sockets, no state.
 * Both functions look at what has come so far and are called again with more
 * when it is not whole; nothing is taken that does not belong to the message,
 * since what follows is the tunnel's.
 *
 * Only "no authentication" and CONNECT exist here. Addresses are parsed, so
 * that the refusal can name them, and refused by whoever decides.
 */
#pragma once

#include "lib/cleanup.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define SOCKS_VERSION      5u
#define SOCKS_NO_AUTH      0u
#define SOCKS_NO_METHOD    0xffu
#define SOCKS_GREETING_MAX 257u /* version, count, 255 methods */
#define SOCKS_REQUEST_MAX  262u /* 4, length, 255 bytes of name, 2 of port */
#define SOCKS_REPLY_BYTES  10u

/* RFC 1928 section 6 */
enum socks_reply {
	SOCKS_OK = 0,
	SOCKS_FAILURE = 1,
	SOCKS_NOT_ALLOWED = 2,
	SOCKS_UNREACHABLE = 4,
	SOCKS_REFUSED = 5,
	SOCKS_BAD_COMMAND = 7,
	SOCKS_BAD_ATYP = 8,
};

/* Section 5 */
enum socks_atyp {
	SOCKS_IPV4 = 1,
	SOCKS_DOMAIN = 3,
	SOCKS_IPV6 = 4,
};

struct socks_request {
	uint8_t atyp;
	char host[256]; /* as it came: may hold NUL bytes; of an address: its text */
	size_t host_len;
	uint16_t port;
};

/* Bytes of the greeting; 0: more is needed; -EPROTO: not SOCKS5; -EACCES: no method of ours. */
__must_check ssize_t socks_greeting(const uint8_t *p, size_t len);

/*
 * Bytes of the request, which is in *r then; 0: more is needed. -EPROTO: not SOCKS5;
 * -EOPNOTSUPP: another command than CONNECT; -EAFNOSUPPORT: an unknown type of address.
 */
__must_check ssize_t socks_request(const uint8_t *p, size_t len, struct socks_request *r);

/* The reply: the bound address is never told (zeros). */
void socks_reply(enum socks_reply code, uint8_t out[SOCKS_REPLY_BYTES]);
