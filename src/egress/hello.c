/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ClientHello reader. Records are taken apart byte by byte as they come; the
 * handshake bytes of a ClientHello are collected and parsed once, when its own
 * length says that it is whole. The parser reads through a cursor that never
 * goes beyond the vector it is in. Nothing recurses, and no length is believed.
 */
#include "egress/hello.h"

#include <string.h>

/* RFC 8446 sections 4, 4.2 and 5.1; 0xffce: the drafts' encrypted_server_name */
#define TYPE_ALERT       21u
#define TYPE_HANDSHAKE   22u
#define ALERT_WARNING    1u
#define ALERT_BYTES      7u /* of its record */
#define RECORD_MAX       16384u
#define HANDSHAKE_HEADER 4u
#define CLIENT_HELLO     1u
#define SERVER_HELLO     2u
#define EXT_SERVER_NAME  0u
#define EXT_ECH          0xfe0du
#define EXT_ESNI         0xffceu
#define NAME_TYPE_HOST   0u

const uint8_t hello_alert[HELLO_ALERT_BYTES] = {TYPE_ALERT, 3, 3, 0, 2, 2, 49};

/* Section 4.1.3: the random of a ServerHello that is a HelloRetryRequest. */
static const uint8_t retry_random[32] = {0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11,
					 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
					 0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e,
					 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c};

/* What a vector holds: reads beyond it fail, and set bad. */
struct cursor {
	const uint8_t *p;
	size_t left;
	bool bad;
};

static uint32_t take_int(struct cursor *c, size_t bytes)
{
	uint32_t v = 0;

	if (c->left < bytes) {
		c->bad = true;
		c->left = 0;
		return 0;
	}
	for (size_t i = 0; i < bytes; i++)
		v = v << 8 | c->p[i];
	c->p += bytes;
	c->left -= bytes;
	return v;
}

static struct cursor take_bytes(struct cursor *c, size_t len)
{
	struct cursor sub = {c->p, len, false};

	if (c->left < len) {
		c->bad = true;
		c->left = 0;
		return (struct cursor){.p = c->p, .bad = true};
	}
	c->p += len;
	c->left -= len;
	return sub;
}

/* A vector with its length before it; outside of min..max it is bad. */
static struct cursor take_vector(struct cursor *c, size_t length_bytes, size_t min, size_t max)
{
	size_t len = take_int(c, length_bytes);

	if (len < min || len > max)
		c->bad = true;
	return take_bytes(c, len);
}

void hello_init(struct hello *h)
{
	*h = (struct hello){.verdict = HELLO_MORE};
	buf_init(&h->message, HELLO_MAX);
}

void hello_free(struct hello *h)
{
	buf_free(&h->message);
}

static enum hello_verdict not_tls(struct hello *h, const char *why)
{
	h->why = why;
	return HELLO_NOT_TLS;
}

/* --- one ClientHello ---------------------------------------------------------------------- */

/* RFC 6066 section 3, with exactly one entry. */
static enum hello_verdict parse_server_name(struct hello *h, struct cursor ext, char *name)
{
	struct cursor list = take_vector(&ext, 2, 1, ext.left), host;
	uint32_t type = take_int(&list, 1);

	host = take_vector(&list, 2, 1, EGRESS_HOST_MAX);
	if (ext.bad || list.bad || host.bad || ext.left || list.left || type != NAME_TYPE_HOST)
		return not_tls(h, "the server_name of the ClientHello is not one host name");
	for (size_t i = 0; i < host.left; i++) {
		uint8_t c = host.p[i];

		if (c <= ' ' || c >= 0x7f)
			return not_tls(h, "the server_name of the ClientHello is not a name");
		name[i] = (char)(c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c);
	}
	name[host.left] = '\0';
	return HELLO_NAME;
}

static enum hello_verdict parse_extensions(struct hello *h, struct cursor exts, char *name)
{
	uint8_t seen[65536 / 8] = {0}; /* by type */
	enum hello_verdict v = HELLO_NO_NAME;
	bool ech = false;

	while (exts.left && v != HELLO_NOT_TLS) {
		uint32_t type = take_int(&exts, 2);
		struct cursor ext = take_vector(&exts, 2, 0, 65535);

		if (exts.bad || ext.bad)
			return not_tls(h, "the extensions of the ClientHello are cut off");
		if (seen[type / 8] & (1u << type % 8))
			return not_tls(h, "an extension of the ClientHello is there twice");
		seen[type / 8] |= (uint8_t)(1u << type % 8);
		if (type == EXT_ECH || type == EXT_ESNI)
			ech = true;
		else if (type == EXT_SERVER_NAME)
			v = parse_server_name(h, ext, name);
	}
	return ech && v != HELLO_NOT_TLS ? HELLO_ECH : v;
}

/* body: of the handshake message. */
static enum hello_verdict parse_client_hello(struct hello *h, struct cursor body, char *name)
{
	uint32_t version = take_int(&body, 2);
	struct cursor suites, exts;

	take_bytes(&body, 32);        /* random */
	take_vector(&body, 1, 0, 32); /* session id */
	suites = take_vector(&body, 2, 2, 65534);
	take_vector(&body, 1, 1, 255); /* compression methods */
	if (body.bad || version >> 8 != 3 || suites.left % 2)
		return not_tls(h, "the ClientHello is malformed");
	if (body.left == 0)
		return HELLO_NO_NAME; /* before extensions were thought of */
	exts = take_vector(&body, 2, 0, 65535);
	if (body.bad || exts.bad || body.left)
		return not_tls(h, "the ClientHello is malformed");
	return parse_extensions(h, exts, name);
}

/* --- records ------------------------------------------------------------------------------ */

/* The first header must be a handshake's; later ones, while we watch, may be anything of TLS. */
static enum hello_verdict check_record(struct hello *h)
{
	size_t len = (size_t)h->record[3] << 8 | h->record[4];
	bool handshake = h->record[0] == TYPE_HANDSHAKE;

	if (h->record[1] != 3 || h->record[2] > 4)
		return not_tls(h, "the version of a TLS record is not one of TLS");
	/* Encrypted records, which others may be, are a little longer. */
	if (len > RECORD_MAX + (handshake ? 0u : 256u) || (handshake && len == 0))
		return not_tls(h, "the length of a TLS record is out of bounds");
	if (!handshake && (h->verdict == HELLO_MORE || buf_len(&h->message)))
		return not_tls(h, "another record comes before the end of the ClientHello");
	h->record_left = len;
	return HELLO_MORE;
}

/* What of the handshake is here: a whole ClientHello, a part of one, or something else. */
static enum hello_verdict check_message(struct hello *h, char *name)
{
	const uint8_t *m = buf_data(&h->message);
	size_t have = buf_len(&h->message), len;

	if (m[0] != CLIENT_HELLO)
		return not_tls(h, "the handshake does not begin with a ClientHello");
	if (have < HANDSHAKE_HEADER)
		return HELLO_MORE;
	len = (size_t)m[1] << 16 | (size_t)m[2] << 8 | m[3];
	if (len + HANDSHAKE_HEADER > HELLO_MAX)
		return not_tls(h, "the ClientHello is too long");
	if (have < len + HANDSHAKE_HEADER)
		return HELLO_MORE;
	if (have > len + HANDSHAKE_HEADER || h->record_left)
		return not_tls(h, "something is behind the ClientHello in its record");
	return parse_client_hello(h, (struct cursor){m + HANDSHAKE_HEADER, len, false}, name);
}

/* Takes bytes up to the end of a record's header, or of the fragment; how many. */
static size_t take_record(struct hello *h, const uint8_t *p, size_t len, enum hello_verdict *v,
			  char *name)
{
	size_t n;

	if (h->record_have < sizeof(h->record)) {
		h->record[h->record_have++] = p[0];
		/* What is not TLS mostly shows in its first byte; nothing has to wait for more. */
		if (h->record_have == 1 && h->verdict == HELLO_MORE && p[0] != TYPE_HANDSHAKE)
			*v = not_tls(h, "the first byte is not one of TLS");
		else if (h->record_have == sizeof(h->record))
			*v = check_record(h);
		n = 1;
	} else {
		n = len < h->record_left ? len : h->record_left;
		h->record_left -= n;
		if (h->record[0] == TYPE_HANDSHAKE)
			*v = buf_append(&h->message, p, n) < 0
				     ? not_tls(h, "the ClientHello is too long")
				     : check_message(h, name);
	}
	if (h->record_have == sizeof(h->record) && h->record_left == 0)
		h->record_have = 0;
	return n;
}

/* A verdict on one ClientHello: the first, or, when there is a name already, the second. */
static void conclude(struct hello *h, enum hello_verdict v, const char *name)
{
	buf_free(&h->message);
	if (h->verdict == HELLO_MORE) {
		h->verdict = v;
		memcpy(h->name, name, sizeof(h->name));
		h->done = v != HELLO_NAME;
		return;
	}
	h->done = true; /* a server asks once */
	if (v == HELLO_NAME && strcmp(name, h->name) == 0)
		return;
	h->verdict = HELLO_SECOND;
	if (v != HELLO_NOT_TLS)
		h->why = "a second ClientHello does not say the name of the first";
}

enum hello_verdict hello_feed(struct hello *h, const uint8_t *p, size_t len)
{
	char name[EGRESS_HOST_MAX + 1] = "";

	while (len && !h->done) {
		enum hello_verdict v = HELLO_MORE;
		size_t n;

		if (h->verdict == HELLO_MORE && h->seen >= HELLO_MAX) {
			conclude(h, not_tls(h, "the ClientHello is too long"), name);
			break;
		}
		n = take_record(h, p, len, &v, name);
		if (h->verdict == HELLO_MORE)
			h->seen += n;
		p += n;
		len -= n;
		if (v != HELLO_MORE)
			conclude(h, v, name);
	}
	return h->verdict;
}

/* An alert that only warns (unrecognized_name, before a ServerHello): the answer is yet to come. */
static bool is_warning(const uint8_t *s)
{
	return s[0] == TYPE_ALERT && s[3] == 0 && s[4] == 2 && s[5] == ALERT_WARNING;
}

void hello_server(struct hello *h, const uint8_t *p, size_t len)
{
	const uint8_t *s = h->server;

	while (len && !h->done && h->server_have < sizeof(h->server)) {
		h->server[h->server_have++] = *p++;
		len--;
		if (s[0] == TYPE_ALERT && h->server_have < ALERT_BYTES)
			continue;
		if (s[0] == TYPE_ALERT && is_warning(s))
			h->server_have = 0;
		else if (s[0] != TYPE_HANDSHAKE) /* no handshake comes of this */
			h->done = true;
	}
	/* header of the record, of the handshake, version, random */
	if (h->server_have < sizeof(h->server))
		return;
	if (((size_t)s[3] << 8 | s[4]) >= sizeof(h->server) - 5 && s[5] == SERVER_HELLO &&
	    memcmp(s + 11, retry_random, sizeof(retry_random)) != 0)
		h->done = true;
}
