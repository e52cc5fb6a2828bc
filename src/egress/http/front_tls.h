/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The TLS side of a front (front.h): OpenSSL works on memory, all reading and
 * writing of the socket happens here. Where the guest takes bytes of an answer, active_ns is
 * renewed. Thread: the loop's. fork: nothing of its own.
 */
#pragma once

#include "egress/http/front.h"

/* ssl becomes the front's. -ENOMEM: it stays the caller's. */
__must_check int front_tls_init(struct http_front *f, SSL *ssl);
/* Decrypts into `up`: 1 when something came (or the end), 0, -errno. */
__must_check int front_tls_fill(struct http_front *f);
/* Nothing is read before the guest takes what there is for it. */
bool front_tls_full(const struct http_front *f);
/* Encrypts `down` and sends: like buf_flush(); 2 when a record was made of what was there. */
__must_check int front_tls_drain(struct http_front *f);
/* Makes the record that ends TLS: whether there is something to send for it. */
bool front_tls_end(struct http_front *f);
