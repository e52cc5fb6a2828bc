/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS towards the guest, for tunnels that the policy has opened: sessions that
 * show a certificate for the tunnel's host, signed by the sandbox's CA (ca.h).
 *
 * A session goes on only when the client's server_name is the tunnel's host; otherwise it gets an
 * alert, and there is a record. HTTP/1.1 is the only protocol offered.
 *
 * Thread: the loop's. fork: memory.
 */
#pragma once

#include "egress/egress.h"
#include "lib/err.h"

#include <jansson.h>
#include <openssl/ssl.h>

struct intercept;

/* NULL: err. */
struct intercept *intercept_new(struct egress *e, struct err *err);
void intercept_free(struct intercept *it);

/* As http_plane_use_ca(). A CA that is about to expire is replaced. */
__must_check int intercept_use(struct intercept *it, const json_t *ca, json_t **out,
			       struct err *err);

/* A new session of a server; its front (front.h) is set as its app data. NULL without memory, or
 * without a CA. */
SSL *intercept_session(struct intercept *it);
