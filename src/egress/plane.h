/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The HTTP plane as the rest of the proxy calls it: plain HTTP, the gateway,
 * and the inside of intercepted tunnels.
 *
 * A descriptor that is taken is the plane's: a non-blocking UNIX stream, to be
 * closed by it, with egress_stream_end() at the same time.
 *
 * Thread: the loop's.
 */
#pragma once

#include "egress/egress.h"

/* Where the requests of a connection go, when the connection itself says it. */
struct http_origin {
	const char *scheme; /* "https" */
	const char *host;   /* normal form */
	uint16_t port;
};

/* Called before the jail is entered: what needs files or unusual calls happens here. */
struct http_plane *http_plane_new(struct loop *loop, struct egress *e, struct err *err);
/* Closes all connections. */
void http_plane_free(struct http_plane *p);

/*
 * A policy comes with interceptions: ca is the one it brought (NULL: none, make one). *out gets
 * {"cert_pem","key_pem"} of the CA that is used, a new reference. 0; -errno with a sentence: the
 * policy is refused then.
 */
__must_check int http_plane_use_ca(struct http_plane *p, const json_t *ca, json_t **out,
				   struct err *err);

/* Closes idle connections to destinations until there are not more than that. */
void http_plane_spare(struct http_plane *p, size_t most);

/* Another policy holds from now on: idle connections to destinations are closed. */
void http_plane_new_policy(struct http_plane *p);

/* origin: NULL for what was sniffed as HTTP. No byte of the stream was consumed. */
void http_plane_take(struct http_plane *p, int fd, uint64_t stream, const char *exec,
		     const struct http_origin *origin);

/* A tunnel that was told success and is to be opened: TLS comes next. */
void intercept_take(struct http_plane *p, int fd, uint64_t stream, const char *host, uint16_t port);
