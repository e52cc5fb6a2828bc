/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ClientHello at the start of a TLS connection (RFC 8446 section 4.1.2,
 * RFC 6066 section 3), read for one thing: the name that the server will go by.
 *
 * It is fed the bytes of the client as they come, in whatever pieces, puts
 * together what is spread over records, and ends with a verdict. Strict where a
 * server could read something else than we do: lengths fill what they are in to
 * the byte, no extension comes twice, server_name holds exactly one host_name,
 * and nothing is behind the ClientHello in its record.
 *
 * After HELLO_NAME it goes on looking until the server has answered: a TLS 1.3
 * server may ask for a second ClientHello (HelloRetryRequest, section 4.1.4),
 * and one that goes by the name in that must not be led elsewhere. Until then
 * every handshake record of the client has to be a ClientHello with the same
 * name. hello->done tells when there is nothing to look for any more.
 *
 * Memory: at most HELLO_MAX bytes, released by hello_free(). Not synchronised.
 */
#pragma once

#include "egress/rules.h"
#include "lib/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HELLO_MAX          65536u /* of the ClientHello, and of the bytes that it comes in */
#define HELLO_SERVER_BYTES 43u    /* of the server's answer that tell what it is */

enum hello_verdict {
	HELLO_MORE,    /* it is not whole yet */
	HELLO_NAME,    /* name holds it */
	HELLO_NO_NAME, /* there is no server_name */
	HELLO_ECH,     /* encrypted_client_hello, or its predecessor: the name may be another */
	HELLO_NOT_TLS, /* not TLS, or a ClientHello that is not well-formed */
	HELLO_SECOND,  /* after HELLO_NAME: a second ClientHello that is not like the first */
};

struct hello {
	enum hello_verdict verdict;
	char name[EGRESS_HOST_MAX + 1]; /* lower case */
	const char *why;                /* a sentence, of HELLO_NOT_TLS and HELLO_SECOND */
	bool done;                      /* nothing that could come would matter */
	/* private: */
	struct buf message; /* handshake bytes of the ClientHello under way */
	size_t seen;        /* bytes that were fed while the verdict was HELLO_MORE */
	uint8_t record[5];  /* header of the record under way, record_have bytes of it */
	size_t record_have, record_left; /* and what of its fragment is to come */
	uint8_t server[HELLO_SERVER_BYTES];
	size_t server_have;
};

void hello_init(struct hello *h);
void hello_free(struct hello *h);

/* Bytes of the client, all of them in order, before they are passed on. The verdict so far. */
enum hello_verdict hello_feed(struct hello *h, const uint8_t *p, size_t len);
/* Bytes of the server, in order, before they are passed on. */
void hello_server(struct hello *h, const uint8_t *p, size_t len);

/* A fatal alert access_denied (RFC 8446 section 6), which clients show as an error at once. */
#define HELLO_ALERT_BYTES 7u
extern const uint8_t hello_alert[HELLO_ALERT_BYTES];
