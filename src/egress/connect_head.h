/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The head of a CONNECT request (RFC 9110 section 9.3.6, RFC 9112), and nothing
 * else of HTTP: a small grammar that refuses whatever two readers could read in
 * two ways.
 *
 *   "CONNECT" SP host ":" port SP "HTTP/1." ("0" / "1") CRLF
 *   *( token ":" OWS value OWS CRLF ) CRLF
 *
 * Refused: a CR or LF that is not part of CRLF, other control characters and
 * bytes beyond ASCII, folded lines, a space before the colon, userinfo, a path,
 * a port that is missing or not 1 to 5 digits without a leading zero, two Host
 * fields or one that is not the target, bodies (Transfer-Encoding, or a
 * Content-Length that is not 0), Upgrade, Expect.
 *
 * A host in brackets is an address; it comes out as it is, and whoever decides
 * refuses it.
 *
 * Pure, any thread.
 */
#pragma once

#include "egress/decide.h"
#include "lib/cleanup.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define CONNECT_HEAD_MAX   8192u
#define CONNECT_FIELDS_MAX 64u
#define CONNECT_METHOD     "CONNECT "
#define CONNECT_METHOD_LEN 8u
#define CONNECT_TARGET_MAX 512u

struct connect_head {
	char host[CONNECT_TARGET_MAX]; /* as it came; "" when the target could not be read */
	uint16_t port;
	/* Of a refusal: */
	enum egress_reason reason;
	const char *why; /* a sentence */
};

/* Bytes of the head; 0: more is needed; -EBADMSG: refused, out->reason and out->why say why. */
__must_check ssize_t connect_head_parse(const char *p, size_t len, struct connect_head *out);
