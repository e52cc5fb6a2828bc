/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection of the guest in front of the HTTP library: what stands between
 * the guest's socket and a socket pair whose other end the library has.
 *
 * Up: each head is looked at whole (head.h) before the library gets it, and the
 * library gets one request at a time, exactly its bytes but for "?" in its target, which
 * http_request_new() makes good, and white space behind values of headers (http_head_tidy()): the
 * next one only when the one before is over. What frames a chunked body is looked at as well
 * (chunks.h). Down: bytes as they
 * come. With TLS, both are decrypted and encrypted here. Each direction holds at most FRONT_BUF
 * bytes, and reads no more until it has passed them on.
 *
 * The guest's end of a connection, or of its sending, gives up the request that is under way, like
 * everywhere in this project: nobody reads the answer.
 *
 * It ends by itself: with the guest's socket, with the library's (what is there goes out first),
 * with a head, or a body in chunks, that is refused (answered here, with JSON), or when it is cut.
 *
 * Thread: the loop's. fork: sockets are close-on-exec.
 */
#pragma once

#include "egress/http/chunks.h"
#include "egress/http/head.h"
#include "egress/http/target.h"
#include "lib/buf.h"
#include "lib/list.h"
#include "lib/loop.h"

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stdint.h>

struct http_conn;
struct http_plane;

#define FRONT_BUF 65536ul

enum front_phase {
	FRONT_HEAD,    /* between requests, or within a head */
	FRONT_BODY,    /* `left` more bytes of this request go up */
	FRONT_STREAM,  /* chunked: everything goes up, and the connection ends with this request */
	FRONT_WAIT,    /* the request is with the library; the next one waits */
	FRONT_CLOSING, /* what is in `down` goes out, what comes is dropped */
};

struct http_front {
	struct list link; /* plane->fronts; first: overwritten when freed */
	struct http_plane *plane;
	uint64_t stream;
	bool inside;               /* of a tunnel, to: */
	struct http_origin origin; /* its strings are below */
	char host[EGRESS_HOST_MAX + 1];

	struct loop_src guest, inner; /* inner: -1 before the first request */
	int lib_fd;                   /* the library's end until the library tells of it; or -1 */
	struct http_conn *conn; /* the library's view from then on; NULL: gone, or no memory */
	struct loop_timer timer;
	uint64_t active_ns;

	enum front_phase phase;
	struct http_head head;
	struct http_chunks chunks;
	size_t looked; /* FRONT_STREAM: bytes in `up` that may go to the library */
	uint64_t left;
	struct buf up, down;
	bool guest_eof, said_tls_end, said_end, freed;

	SSL *ssl;                        /* NULL: plain */
	struct buf wire;                 /* TLS bytes for the guest */
	bool tls_dead;                   /* its handshake or a record failed */
	uint64_t tls_notices, tls_bytes; /* messages of TLS itself; bytes of the guest within */
	size_t tls_answer;               /* TLS bytes up to the end of what was in `down` */
};

/*
 * Takes fd and stream; origin and ssl are NULL for what came to the proxy itself. ssl: a server's
 * session with nothing attached, owned from here on. -ENOMEM or -errno: nothing was taken.
 */
__must_check int http_front_new(struct http_plane *p, int fd, uint64_t stream,
				const struct http_origin *origin, SSL *ssl);

/*
 * Answers in the library's place, which cannot in the middle of an upload, with a whole response
 * that says Connection: close, and closes behind it. Nothing of an answer may have been sent. The
 * front may be gone behind this.
 */
void http_front_answer(struct http_front *f, const char *text);
/* The library is through with the request. */
void http_front_request_done(struct http_front *f);
/* At once. */
void http_front_free(struct http_front *f);
