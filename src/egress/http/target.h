/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a request wants to go: the URL of its first line and its Host, as the
 * HTTP library found them, become a destination, or a reason why not.
 *
 *   to the proxy         http://HOST[:PORT]/path              plain HTTP to HOST:PORT or 80
 *                        http://HOST.egress[:PORT]/path       the gateway: TLS to HOST:PORT or 443
 *   within a tunnel      /path                                TLS to the tunnel's host and port
 *
 * Everything else is refused: https:// (the proxy would have to read what should be private: there
 * are CONNECT and the gateway for it), a path without an authority, userinfo, a Host that is not
 * the URL's authority, CONNECT and TRACE. Names and paths are only cut out here and stay as they
 * were written: what they may be is for egress/rules.h.
 *
 * Thread: any; pure. fork: plain memory.
 */
#pragma once

#include "egress/plane.h"
#include "lib/cleanup.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A name and ".egress". */
#define HTTP_HOST_MAX (EGRESS_HOST_MAX + 7)

struct http_target {
	enum egress_proto proto; /* EGRESS_HTTP, EGRESS_GATEWAY, EGRESS_INTERCEPT */
	bool tls;
	char host[HTTP_HOST_MAX + 1]; /* as it was written, without ".egress"; "" when unknown */
	uint16_t port;                /* 0 when unknown */
	const char *path;             /* what is sent: from the "/", with the query; of the URI */
	size_t path_len;              /* without the query */
};

struct http_refusal {
	enum egress_reason reason;
	const char *detail, *hint; /* sentences; hint may be NULL */
};

/*
 * host: value of Host, or NULL. origin: NULL for what came to the proxy itself. t->path points into
 * uri. 0; -EBADMSG with the refusal, and in t as much as is known.
 */
__must_check int http_target_parse(struct http_target *t, const char *method, const char *uri,
				   const char *host, const struct http_origin *origin,
				   struct http_refusal *why);
